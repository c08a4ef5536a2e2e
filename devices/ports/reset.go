package ports

// Status register of the keyboard controller, port 0x64 read (PS/2 Technical
// Reference, "Controller Status Register").
const (
	kbcOutputFull = 1 << 0 // a byte waits at port 0x60
	// Bit 1, input buffer full, is always 0: every command has been taken. What
	// resets a machine (Linux's kb_wait) waits for that.
)

// Commands, port 0x64 write ("Controller Commands").
const (
	kbcWriteOutput = 0xD1 // the next byte to port 0x60 goes to the output port
	kbcPulse       = 0xF0 // to 0xFF: pulse low the output port bits that are 0 in bits 3-0
)

// outNoReset is bit 0 of the controller's output port: the CPU's reset line,
// active low ("Output Port").
const outNoReset = 1 << 0

// ghosts is how many bytes of 0xFF wait after each command and at first. There
// is no keyboard here, and drivers should find that out without waiting: an
// empty controller costs NetBSD's pckbc(4) 200 ms of polling for a self-test
// answer and Linux's i8042 500 ms. A wrong answer makes the first give up at once, and the
// second when it has read 16 bytes and there are more. A loop that reads until
// the controller is empty must end too.
const ghosts = 32

func (p *Ports) readKBCStatus() byte {
	if p.ghosts > 0 {
		return kbcOutputFull
	}
	return 0
}

func (p *Ports) readKBCData() byte {
	p.ghosts = max(0, p.ghosts-1)
	return 0xFF
}

func (p *Ports) writeKBCCommand(v byte) Event {
	p.ghosts = ghosts
	p.s.KBCOutput = v == kbcWriteOutput
	if v >= kbcPulse && v&outNoReset == 0 {
		return Event{Kind: KeyboardReset}
	}
	return Event{}
}

func (p *Ports) writeKBCData(v byte) Event {
	output := p.s.KBCOutput
	p.s.KBCOutput = false
	if output && v&outNoReset == 0 {
		return Event{Kind: KeyboardReset}
	}
	return Event{}
}

// Reset Control Register, port 0xCF9 (ICH9 §13.7.5). The other bits read 0.
const (
	rstSystem = 1 << 1 // SYS_RST: hard rather than soft; here they are the same
	rstCPU    = 1 << 2 // RST_CPU: resets when it goes from 0 to 1
	rstFull   = 1 << 3 // FULL_RST: power-cycle
	rstMask   = rstSystem | rstCPU | rstFull
)

func (p *Ports) readControl() byte { return p.s.Control }

func (p *Ports) writeControl(v byte) Event {
	rises := v&^p.s.Control&rstCPU != 0
	p.s.Control = v & rstMask
	if rises {
		return Event{Kind: ControlReset}
	}
	return Event{}
}

// Port 0x92 (ICH9 §13.7.3). The other bits read 0.
const (
	fastInit = 1 << 0 // INIT_NOW: resets the CPU when it goes from 0 to 1
	fastA20  = 1 << 1 // ALT_A20_GATE: always 1, address line 20 is never masked
)

func (p *Ports) readFast() byte { return fastA20 | p.s.Fast }

func (p *Ports) writeFast(v byte) Event {
	rises := v&^p.s.Fast&fastInit != 0
	p.s.Fast = v & fastInit
	if rises {
		return Event{Kind: FastReset}
	}
	return Event{}
}
