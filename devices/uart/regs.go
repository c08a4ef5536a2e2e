package uart

// Where a PC has its first serial port (IBM PC AT Technical Reference, "Serial
// Adapter"): eight ports from 0x3F8, edge-triggered on ISA interrupt 4.
const (
	COM1 = 0x3F8 // first port
	Size = 8     // ports
	IRQ  = 4     // ISA interrupt line
)

// Register offsets from the base port (PC16550D §8.0, table II). The first two
// have other meanings while LCR.DLAB is set, the third differs by direction.
//
//	off  DLAB  read  write  section
//	0    0     RBR   THR    §8.0 table II, §8.11 with FIFOs
//	1    0     IER   IER    §8.7
//	0    1     DLL   DLL    §8.3
//	1    1     DLM   DLM    §8.3
//	2    -     IIR   FCR    §8.6, §8.5
//	3    -     LCR   LCR    §8.1
//	4    -     MCR   MCR    §8.8
//	5    -     LSR   -      §8.4
//	6    -     MSR   -      §8.9
//	7    -     SCR   SCR    §8.10
const (
	regData = 0 // RBR, THR, DLL
	regIER  = 1 // IER, DLM
	regIIR  = 2 // IIR, FCR
	regLCR  = 3
	regMCR  = 4
	regLSR  = 5
	regMSR  = 6
	regSCR  = 7
)

// Interrupt Enable Register (PC16550D §8.7). Bits 4 to 7 read as zero.
const (
	ierRx    = 1 << 0 // ERBFI: received data available, and character timeout
	ierTx    = 1 << 1 // ETBEI: transmitter holding register empty
	ierLine  = 1 << 2 // ELSI: receiver line status
	ierModem = 1 << 3 // EDSSI: modem status
	ierMask  = 0x0F
)

// Interrupt Identification Register (PC16550D §8.6, table IV), from the highest
// priority to the lowest.
const (
	iirLine    = 0x06 // receiver line status: reset by reading LSR
	iirRx      = 0x04 // received data: reset when the FIFO falls below its trigger level
	iirTimeout = 0x0C // character timeout: reset by reading RBR
	iirTx      = 0x02 // THR empty: reset by reading this IIR or writing THR
	iirModem   = 0x00 // modem status: reset by reading MSR
	iirNone    = 0x01 // bit 0 set: nothing is pending
	iirFIFOs   = 0xC0 // bits 6 and 7: the FIFOs are enabled
)

// FIFO Control Register (PC16550D §8.5), write-only.
const (
	fcrEnable  = 1 << 0 // both FIFOs on; any change of it clears them
	fcrRxReset = 1 << 1 // clears the receiver FIFO, resets itself
	fcrTxReset = 1 << 2 // clears the transmitter FIFO, resets itself
	fcrDMA     = 1 << 3 // RXRDY and TXRDY pin mode: the pins lead nowhere on a PC
	fcrTrigger = 0xC0   // receiver trigger level
	fcrKept    = fcrEnable | fcrDMA | fcrTrigger
)

// triggerLevel is the receiver trigger in characters by FCR bits 7:6
// (PC16550D §8.5).
var triggerLevel = [4]int{1, 4, 8, 14}

// fifoSize is the depth of the receiver FIFO in characters (PC16550D, "General Description"); the
// transmitter's is replaced by the larger output buffer.
const fifoSize = 16

// Line Control Register (PC16550D §8.1). Word length, parity, stop bits and
// break are kept and read back, but a host stream is bytes: they change nothing.
const lcrDLAB = 1 << 7

// Modem Control Register (PC16550D §8.8). Bits 5 to 7 read as zero.
const (
	mcrDTR  = 1 << 0
	mcrRTS  = 1 << 1
	mcrOUT1 = 1 << 2
	mcrOUT2 = 1 << 3 // on a PC this pin gates the interrupt line
	mcrLoop = 1 << 4 // THR is fed to RBR, MCR to MSR; output pins go inactive
	mcrMask = 0x1F
)

// Line Status Register (PC16550D §8.4).
const (
	lsrDR   = 1 << 0 // data ready
	lsrOE   = 1 << 1 // overrun error: reset by reading LSR
	lsrPE   = 1 << 2 // parity error: never, a host stream has none
	lsrFE   = 1 << 3 // framing error: never
	lsrBI   = 1 << 4 // break interrupt: reset by reading LSR
	lsrTHRE = 1 << 5 // transmitter holding register empty
	lsrTEMT = 1 << 6 // transmitter empty
	lsrFIFO = 1 << 7 // an error is somewhere in the receiver FIFO

	lsrErrors = lsrOE | lsrPE | lsrFE | lsrBI
)

// Modem Status Register (PC16550D §8.9). The low four bits say that an input
// changed since MSR was last read, and are reset by reading it.
const (
	msrDCTS = 1 << 0
	msrDDSR = 1 << 1
	msrTERI = 1 << 2 // ring indicator went from active to inactive
	msrDDCD = 1 << 3
	msrCTS  = 1 << 4
	msrDSR  = 1 << 5
	msrRI   = 1 << 6
	msrDCD  = 1 << 7

	msrDeltas = 0x0F
	// A host console is always there: clear to send, data set ready, carrier.
	msrConnected = msrCTS | msrDSR | msrDCD
)

// resetDivisor is 9,600 baud from the PC's 1.8432 MHz crystal (PC16550D §8.3,
// table III). The chip leaves the latch undefined at reset (§8.0, table I).
const resetDivisor = 12
