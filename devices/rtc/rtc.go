// Package rtc is a PC's real-time clock: Motorola's MC146818A (datasheet of
// 1984, whose sections have titles and no numbers) with 128 bytes of CMOS RAM
// behind an index and a data port.
//
// The clock counts the host's UTC plus an offset, which is what the guest
// changes when it sets the time: the host's own clock is never touched.
//
// What is left out: there is no interrupt pin, as no guest of this machine uses
// ISA interrupt 8. Register C still tells of seconds and periods gone by to a
// guest that polls it; its alarm flag stays 0. Changing the data mode or the
// hour mode converts the running time, where the chip would want it set again.
package rtc

import (
	"sync"
	"time"

	"github.com/smolvmm/smolvmm/devices"
)

// Where a PC has its clock (IBM PC AT Technical Reference, "Real-Time Clock/CMOS
// RAM Information").
const (
	Base = 0x70 // first port
	Size = 2    // ports: index, data
)

const (
	portIndex = 0 // write-only; bit 7 masks the NMI, which this machine does not have
	portData  = 1
	indexMask = 0x7F
)

// Registers by index (MC146818A, "Address Map", and for the century IBM's use of
// the CMOS RAM).
//
//	index      what                 section of the datasheet
//	0x00       seconds, 0-59        Time, Calendar, and Alarm Locations, table 3
//	0x01       seconds alarm        "
//	0x02       minutes, 0-59        "
//	0x03       minutes alarm        "
//	0x04       hours, 0-23 or 1-12 with bit 7 for PM   "
//	0x05       hours alarm          "
//	0x06       day of week, 1-7, Sunday is 1           "
//	0x07       day of month, 1-31   "
//	0x08       month, 1-12          "
//	0x09       year, 0-99           "
//	0x0A       register A           Register A ($0A)
//	0x0B       register B           Register B ($0B)
//	0x0C       register C           Register C ($0C), reading clears it
//	0x0D       register D           Register D ($0D), read-only
//	0x0E       diagnostic status: 0, all is well       IBM PC AT, "Diagnostic Status Byte"
//	0x32       century, in the data mode of the time   IBM PC AT, "Date Century Byte"
//	the rest   RAM                  Static CMOS RAM
const (
	regSeconds    = 0x00
	regSecAlarm   = 0x01
	regMinutes    = 0x02
	regMinAlarm   = 0x03
	regHours      = 0x04
	regHourAlarm  = 0x05
	regWeekday    = 0x06
	regDay        = 0x07
	regMonth      = 0x08
	regYear       = 0x09
	regA          = 0x0A
	regB          = 0x0B
	regC          = 0x0C
	regD          = 0x0D
	regDiagnostic = 0x0E
	regCentury    = 0x32
	ramSize       = 128
)

// Register A (MC146818A, "Register A ($0A)"). Bit 7, update in progress, always
// reads 0: the registers are computed when they are read, and never in between
// two seconds. What the 0 promises, 244 µs without an update, is kept by
// latchFor.
const (
	aUIP     = 0x80
	aDivider = 0x70 // DV2-0: the time base
	aReset   = 0x60 // DV2 and DV1: the divider is held in reset, the clock stands
	aRate    = 0x0F // RS3-0: the period of register C's PF
	aInitial = 0x26 // 32.768 kHz, 1,024 Hz: what a PC's firmware leaves
)

// Register B (MC146818A, "Register B ($0B)").
const (
	bSET  = 0x80 // updates are inhibited, the program sets the time
	bPIE  = 0x40 // periodic interrupt enable
	bAIE  = 0x20 // alarm interrupt enable
	bUIE  = 0x10 // update-ended interrupt enable, cleared by SET
	bSQWE = 0x08 // square wave enable: the pin leads nowhere
	bDM   = 0x04 // data mode: binary, not BCD
	b24   = 0x02 // 24-hour mode
	bDSE  = 0x01 // daylight savings enable: kept, not acted upon
)

// Register C (MC146818A, "Register C ($0C)"). Bits 3 to 0 read 0.
const (
	cIRQF = 0x80 // an enabled flag is set
	cPF   = 0x40 // a period of register A's rate has passed
	cUF   = 0x10 // a second has passed
)

// dVRT in register D says that RAM and time are valid; its other bits read 0
// (MC146818A, "Register D ($0D)").
const dVRT = 0x80

const (
	// hoursPM is the bit of the hours that says PM in 12-hour mode.
	hoursPM = 0x80
	// crystal is the time base in Hz.
	crystal = 32768
	// latchFor is how long the time read stays the one at which register A was
	// last read. The chip gives 244 µs after UIP = 0 ("Update Cycle", table 6)
	// to read ten registers; a port access costs a guest up to 50 µs, so this
	// is longer, and a guest never reads a minute and the next one's seconds.
	latchFor = 10 * time.Millisecond
)

// Clock is the RTC. It is a devices.Region of Size ports and devices.Stateful.
type Clock struct {
	now func() time.Time

	mu    sync.Mutex
	index byte
	// ram holds every register that is not computed: the alarms, A, B, the CMOS
	// RAM, and the time while the clock stands.
	ram [ramSize]byte
	// offSec and offNsec are the guest's time minus the host's; 0 <= offNsec < 1e9.
	offSec, offNsec int64
	// seenSec and seenPeriod are the guest's time when C was last read, in
	// seconds and in periods of register A's rate.
	seenSec, seenPeriod int64

	latched   bool
	latchTime time.Time // guest's
	latchedAt time.Time // host's
}

var (
	_ devices.Region   = (*Clock)(nil)
	_ devices.Stateful = (*Clock)(nil)
)

// New makes a clock that shows now's time in UTC; nil is time.Now.
func New(now func() time.Time) *Clock {
	if now == nil {
		now = time.Now
	}
	c := &Clock{now: now}
	c.ram[regA] = aInitial
	c.ram[regB] = b24
	c.see()
	return c
}

// Read answers an access. The index port is write-only: its bytes are left as
// the bus has set them.
func (c *Clock) Read(off uint64, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range p {
		if off == portData {
			p[i] = c.readReg()
		}
		off++
	}
}

// Write takes an access; one of two bytes at the index port is an index and its
// data.
func (c *Clock) Write(off uint64, p []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, v := range p {
		switch off {
		case portIndex:
			c.index = v & indexMask
		case portData:
			c.writeReg(v)
		}
		off++
	}
}

func (c *Clock) readReg() byte {
	switch c.index {
	case regSeconds, regMinutes, regHours, regWeekday, regDay, regMonth, regYear, regCentury:
		if c.stands() {
			return c.ram[c.index]
		}
		return c.encode(c.index, c.latch())
	case regA:
		if !c.stands() {
			c.latched, c.latchTime, c.latchedAt = true, c.time(), c.now()
		}
		return c.ram[regA] &^ aUIP
	case regC:
		return c.readC()
	case regD:
		return dVRT
	}
	return c.ram[c.index]
}

func (c *Clock) writeReg(v byte) {
	switch c.index {
	case regSeconds, regMinutes, regHours, regWeekday, regDay, regMonth, regYear, regCentury:
		if c.stands() {
			c.ram[c.index] = v
			return
		}
		c.halt()
		c.ram[c.index] = v
		c.start(c.time().Nanosecond())
	case regA:
		c.control(v&^aUIP, c.ram[regB])
	case regB:
		if v&bSET != 0 {
			v &^= bUIE
		}
		c.control(c.ram[regA], v)
	case regC, regD: // read-only
	default:
		c.ram[c.index] = v
	}
}

// stands says whether updates are inhibited.
func (c *Clock) stands() bool { return standing(c.ram[regA], c.ram[regB]) }

func standing(a, b byte) bool { return b&bSET != 0 || a&aReset == aReset }

// control changes registers A and B, which may stop or start the clock.
func (c *Clock) control(a, b byte) {
	was, reset := c.stands(), c.ram[regA]&aReset == aReset
	if !was && standing(a, b) {
		c.halt()
	}
	oldRate := c.ram[regA] & aRate
	c.ram[regA], c.ram[regB] = a, b
	switch {
	case was && !c.stands() && reset:
		// The first update comes half a second after the divider's reset
		// (MC146818A, "Register A", DV2-DV0).
		c.start(int(time.Second / 2))
	case was && !c.stands():
		c.start(c.time().Nanosecond())
	case oldRate != a&aRate:
		_, c.seenPeriod = c.counts()
	}
}

// time is the guest's time, in UTC.
func (c *Clock) time() time.Time {
	t := c.now()
	return time.Unix(t.Unix()+c.offSec, int64(t.Nanosecond())+c.offNsec).UTC()
}

// latch is the time to be read: that of the last read of register A for a
// moment, else the running one.
func (c *Clock) latch() time.Time {
	if c.latched {
		if d := c.now().Sub(c.latchedAt); d >= 0 && d < latchFor {
			return c.latchTime
		}
		c.latched = false
	}
	return c.time()
}

// halt puts the running time into the registers.
func (c *Clock) halt() {
	t := c.time()
	for _, r := range timeRegs {
		c.ram[r] = c.encode(r, t)
	}
}

// timeRegs are the registers that the update cycle writes.
var timeRegs = [...]byte{regSeconds, regMinutes, regHours, regWeekday, regDay, regMonth, regYear, regCentury}

// start lets the clock go on from the time in the registers, nsec into its
// second. Whatever the guest has put there becomes some date: the fields are
// small, and one out of its range carries into the next.
func (c *Clock) start(nsec int) {
	year := c.decode(regCentury)*100 + c.decode(regYear)
	t := time.Date(year, time.Month(c.decode(regMonth)), c.decode(regDay),
		c.decode(regHours), c.decode(regMinutes), c.decode(regSeconds), nsec, time.UTC)
	host := c.now()
	c.offSec = t.Unix() - host.Unix()
	c.offNsec = int64(t.Nanosecond() - host.Nanosecond())
	if c.offNsec < 0 {
		c.offNsec += int64(time.Second)
		c.offSec--
	}
	c.latched = false
	c.see()
}

// encode gives register r's value at t in the modes of register B.
func (c *Clock) encode(r byte, t time.Time) byte {
	var v int
	switch r {
	case regSeconds:
		v = t.Second()
	case regMinutes:
		v = t.Minute()
	case regHours:
		return c.encodeHours(t.Hour())
	case regWeekday:
		v = int(t.Weekday()) + 1
	case regDay:
		v = t.Day()
	case regMonth:
		v = int(t.Month())
	case regYear:
		v = t.Year() % 100
	case regCentury:
		v = t.Year() / 100 % 100
	}
	if v < 0 {
		v += 100 // before the year 0, where only a guest's nonsense leads
	}
	return c.digits(v)
}

func (c *Clock) encodeHours(h int) byte {
	if c.ram[regB]&b24 != 0 {
		return c.digits(h)
	}
	v := c.digits((h+11)%12 + 1)
	if h >= 12 {
		v |= hoursPM
	}
	return v
}

// digits is v in the data mode.
func (c *Clock) digits(v int) byte {
	if c.ram[regB]&bDM != 0 {
		return byte(v)
	}
	return byte(v/10<<4 | v%10)
}

// decode is the value of time register r, at most 255.
func (c *Clock) decode(r byte) int {
	v := c.ram[r]
	if r == regHours && c.ram[regB]&b24 == 0 {
		h := c.value(v&^hoursPM) % 12
		if v&hoursPM != 0 {
			h += 12
		}
		return h
	}
	return c.value(v)
}

func (c *Clock) value(v byte) int {
	if c.ram[regB]&bDM != 0 {
		return int(v)
	}
	return int(v>>4)*10 + int(v&0xF)
}

// counts are the guest's time in seconds and in periods of register A's rate,
// the latter 0 without a rate.
func (c *Clock) counts() (sec, period int64) {
	t := c.time()
	rate := c.ram[regA] & aRate
	if rate == 0 {
		return t.Unix(), 0
	}
	if rate < 3 {
		rate += 7 // 256 and 128 Hz with this crystal (MC146818A, table 5)
	}
	ticks := t.Unix()*crystal + int64(t.Nanosecond())*crystal/int64(time.Second)
	return t.Unix(), ticks >> (rate - 1)
}

// see forgets what has passed until now.
func (c *Clock) see() { c.seenSec, c.seenPeriod = c.counts() }

// readC gives and clears the flags. They say what has passed, enabled or not;
// IRQF says whether one of them is enabled.
func (c *Clock) readC() byte {
	if c.stands() {
		return 0
	}
	sec, period := c.counts()
	var v byte
	if sec != c.seenSec {
		v |= cUF
	}
	if period != c.seenPeriod {
		v |= cPF
	}
	if v&c.ram[regB]&(cUF|cPF) != 0 { // UIE and PIE have the places of UF and PF
		v |= cIRQF
	}
	c.seenSec, c.seenPeriod = sec, period
	return v
}
