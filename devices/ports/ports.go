// Package ports has the small ports of a PC that end or mark a machine: the exit
// and mark ports of this monitor's own, the keyboard controller as far as a
// reset goes, the chipset's reset control register, the fast-reset port, and
// the delay ports.
//
// Port 0x61 (NMI status, speaker) is not here: it belongs to the timer, and KVM's
// in-kernel PIT answers it (KVM_PIT_SPEAKER_DUMMY).
package ports

import (
	"sync"
	"time"

	"github.com/smolvmm/smolvmm/devices"
)

// The ports, by address.
//
//	port   width  what                                source
//	0x60   8      keyboard controller, data           IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller"
//	0x64   8      keyboard controller, status/command "
//	0x80   8      power-on self-test code, delay      IBM PC AT Technical Reference, "I/O Address Map"
//	0x92   8      fast A20 and INIT                   Intel ICH9 datasheet §13.7.3, PORT92
//	0xED   8      delay                               Linux, io_delay=0xed
//	0x501  8      exit                                this monitor
//	0x502  8      mark                                this monitor
//	0xCF9  8      reset control                       Intel ICH9 datasheet §13.7.5, RST_CNT
const (
	KBCData      = 0x60
	KBCCommand   = 0x64
	POST         = 0x80
	Fast         = 0x92
	Delay        = 0xED
	Exit         = 0x501
	Mark         = 0x502
	ResetControl = 0xCF9
)

// MaxMarks is how many milestones are kept; later ones are ignored.
const MaxMarks = 256

// Kind says what happened.
type Kind int

// The kinds of events, by the port that makes them.
const (
	ExitPort      Kind = iota + 1 // Status is the byte written: the guest's exit status
	KeyboardReset                 // command 0xF0-0xFE with bit 0 clear, or output port bit 0
	ControlReset                  // 0xCF9 bit 2 went from 0 to 1
	FastReset                     // port 0x92 bit 0 went from 0 to 1
	Milestone                     // Status is the byte written to the mark port
)

var kindNames = [...]string{
	ExitPort: "exit port", KeyboardReset: "keyboard controller reset", ControlReset: "reset control register",
	FastReset: "fast reset port", Milestone: "mark port",
}

// String names the port.
func (k Kind) String() string {
	if k > 0 && int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown"
}

// Event is one write that means something. All kinds but Milestone end the
// machine; a guest may go on writing until it is stopped, so there may be
// several, and the first one counts.
type Event struct {
	Kind   Kind
	Status byte
}

// Stamp is a milestone of the guest's.
type Stamp struct {
	Value byte
	At    time.Time // host, with its monotonic reading
}

// Config is the ports' wiring; it may be zero.
type Config struct {
	// Event is called on the vCPU that wrote, with no lock held. It must not
	// block.
	Event func(Event)
	// Now is the clock of the marks; nil is time.Now.
	Now func() time.Time
}

// Ports are all the ports together, devices.Stateful as one. Regions gives the
// parts to put on a bus.
type Ports struct {
	event func(Event)
	now   func() time.Time

	mu     sync.Mutex
	s      State
	ghosts int
	marks  []Stamp
}

// New makes the ports as after a power-on.
func New(c Config) *Ports {
	p := &Ports{event: c.Event, now: c.Now}
	if p.event == nil {
		p.event = func(Event) {}
	}
	if p.now == nil {
		p.now = time.Now
	}
	p.ghosts = ghosts
	return p
}

// Region is one port with its address and its name for traces.
type Region struct {
	devices.Region
	Name string
	Base uint16
	Len  uint16 // in ports
}

// Regions are all ports, one region each, in ascending order.
func (p *Ports) Regions() []Region {
	out := make([]Region, len(table))
	for i := range table {
		t := &table[i]
		out[i] = Region{port{p, t}, t.name, t.addr, 1}
	}
	return out
}

// entry is what one port does. A read that is nil leaves the ones that the bus
// has set; a write that is nil is ignored. Both are called with the lock held;
// write gives the event to report, if its kind is not 0.
type entry struct {
	addr  uint16
	name  string
	read  func(*Ports) byte
	write func(*Ports, byte) Event
}

var table = [...]entry{
	{KBCData, "keyboard data", (*Ports).readKBCData, (*Ports).writeKBCData},
	{KBCCommand, "keyboard command", (*Ports).readKBCStatus, (*Ports).writeKBCCommand},
	{POST, "POST code", nil, nil},
	{Fast, "fast reset", (*Ports).readFast, (*Ports).writeFast},
	{Delay, "delay", nil, nil},
	{Exit, "exit", nil, (*Ports).writeExit},
	{Mark, "mark", nil, (*Ports).writeMark},
	{ResetControl, "reset control", (*Ports).readControl, (*Ports).writeControl},
}

// port is one entry as a devices.Region. All are eight bits wide: of a wider
// access the first byte counts.
type port struct {
	p *Ports
	e *entry
}

func (r port) Read(off uint64, b []byte) {
	if off != 0 || len(b) == 0 || r.e.read == nil {
		return
	}
	r.p.mu.Lock()
	defer r.p.mu.Unlock()
	b[0] = r.e.read(r.p)
}

func (r port) Write(off uint64, b []byte) {
	if off != 0 || len(b) == 0 || r.e.write == nil {
		return
	}
	r.p.mu.Lock()
	e := r.e.write(r.p, b[0])
	r.p.mu.Unlock()
	if e.Kind != 0 {
		r.p.event(e)
	}
}

func (p *Ports) writeExit(v byte) Event { return Event{ExitPort, v} }

func (p *Ports) writeMark(v byte) Event {
	if len(p.marks) == MaxMarks {
		return Event{}
	}
	p.marks = append(p.marks, Stamp{v, p.now()})
	return Event{Milestone, v}
}

// Marks are the milestones so far, at most MaxMarks.
func (p *Ports) Marks() []Stamp {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Stamp(nil), p.marks...)
}
