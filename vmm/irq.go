package vmm

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// pin is an interrupt controller pin whose level a device sets, through
// KVM_IRQ_LINE. The level is kept so that setting it again costs nothing.
type pin struct {
	vm  *kvm.VM
	gsi uint32

	mu   sync.Mutex
	high bool
}

// Set implements devices.Line. KVM refuses only pins that do not exist.
func (p *pin) Set(high bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.high != high {
		p.high = high
		_ = p.vm.SetIRQLine(p.gsi, high)
	}
}

// levelPin is a level-triggered pin behind a resampling irqfd
// (KVM_IRQFD_FLAG_RESAMPLE, api.rst §4.75): raise asserts it, KVM drops it at
// the guest's EOI and signals the resample eventfd, upon which the transport
// raises again if it still has something to say. A plain irqfd would pulse, and
// a pulse that meets a pin awaiting its EOI is lost.
type levelPin struct {
	raiseFD int
	ackFD   *os.File
	raised  atomic.Uint64 // beside a system call that costs fifty times as much
	served  chan struct{} // closed when serve has returned; nil: it was never called
}

func newLevelPin(vm *kvm.VM, gsi uint32) (*levelPin, error) {
	r, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	a, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(r)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	p := &levelPin{raiseFD: r, ackFD: os.NewFile(uintptr(a), "resample")}
	err = vm.AddIRQFD(kvm.IRQFD{FD: uint32(r), GSI: gsi, Flags: kvm.IRQFDResample, ResampleFD: uint32(a)})
	if err != nil {
		return nil, errors.Join(err, p.close())
	}
	return p, nil
}

// raise asserts the pin. EAGAIN would mean 2^64 raises that KVM has not seen.
func (p *levelPin) raise() {
	p.raised.Add(1)
	one := [8]byte{1}
	for {
		if _, err := unix.Write(p.raiseFD, one[:]); err != unix.EINTR {
			return
		}
	}
}

// serve starts the goroutine that calls resample after each EOI until the pin is
// closed.
func (p *levelPin) serve(resample func()) {
	p.served = make(chan struct{})
	go func() {
		defer close(p.served)
		var buf [8]byte
		for {
			if _, err := p.ackFD.Read(buf[:]); err != nil {
				return
			}
			resample()
		}
	}()
}

// close waits for serve before it gives the eventfd back: a late raise would
// reach whatever file has its number next.
func (p *levelPin) close() error {
	err := p.ackFD.Close()
	if p.served != nil {
		<-p.served
	}
	return errors.Join(err, unix.Close(p.raiseFD))
}
