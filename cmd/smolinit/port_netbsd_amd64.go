package main

// Port I/O: needs IOPL 3 on this thread.

//go:noescape
func outb(port uint16, v uint8)

//go:noescape
func outw(port, v uint16)

// insb reads a port n times into *p by one string instruction, which a monitor
// can serve with one exit for many bytes.
//
//go:noescape
func insb(port uint16, p *byte, n int)

// machinePorts are the real ports. A fault kills the process, so they are used
// only after sys.iopl has succeeded on this thread.
type machinePorts struct{}

func (machinePorts) out8(port uint16, v uint8)   { outb(port, v) }
func (machinePorts) out16(port uint16, v uint16) { outw(port, v) }

func (machinePorts) in8(port uint16, p []byte) {
	// Every page must be there before: KVM's emulator has read the port by
	// the time it finds that it cannot store, and what it read is lost when
	// the instruction starts again after the page fault.
	clear(p)
	// In pieces: a stopped world waits for this thread, and the assembly
	// cannot be preempted.
	for len(p) > 0 {
		n := min(len(p), 4096)
		insb(port, &p[0], n)
		p = p[n:]
	}
}
