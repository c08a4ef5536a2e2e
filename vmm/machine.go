// Package vmm is a virtual machine monitor for Linux/KVM that a program can
// embed: a Config describes a machine, New builds it, Run runs the guest to its
// end, Close gives everything back.
//
//	m, err := vmm.New(vmm.Config{Kernel: vmm.File{Path: "netbsd"}, ConsoleOut: os.Stdout})
//	if err != nil { … }
//	defer m.Close()
//	exit, err := m.Run(ctx)
//
// A machine keeps nothing outside itself: no globals, no signal handlers, no
// process-wide settings. Several can live in one process.
package vmm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/blk"
	"github.com/smolvmm/smolvmm/devices/blk/disk"
	"github.com/smolvmm/smolvmm/devices/net"
	"github.com/smolvmm/smolvmm/devices/uart"
	"github.com/smolvmm/smolvmm/devices/vsock"
	"github.com/smolvmm/smolvmm/devices/vsock/muxer"
	"github.com/smolvmm/smolvmm/pvh"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
	"github.com/smolvmm/smolvmm/vmm/internal/bus"
	"github.com/smolvmm/smolvmm/vmm/internal/cpu"
	"github.com/smolvmm/smolvmm/vmm/internal/jail"
	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// Machine is a virtual machine. Its methods are safe for concurrent use.
type Machine struct {
	cfg  Config
	log  *slog.Logger
	mem  *guestmem.Memory
	host *hypervisor
	vm   *kvm.VM

	ports, mmio bus.Bus
	vcpus       []*cpu.VCPU
	com1        *uart.UART
	pins        []*pin // of the virtio transports, by slot
	disks       []disk.Files
	blks        []*blk.Device
	nets        []*net.Device
	vsock       *vsock.Device // nil: none
	vsockHost   *muxer.Muxer
	// blockDevices: some disk is a block device, whose ioctls a jail must allow.
	blockDevices bool
	stateful     []namedDevice  // everything with state, in the order it is stopped
	closers      []func() error // what create opened, in that order

	timeline timeline

	mu      sync.Mutex // the machine's phase
	phase   phase
	ran     bool           // Run has been called
	runs    sync.WaitGroup // Run under way
	release func() error   // once

	started chan struct{} // closed by Run, when nothing can keep the guest from running
	ended   chan struct{} // closed when exit is set
	endOnce sync.Once
	exit    Exit
	hostErr error
}

type namedDevice struct {
	name string
	devices.Stateful
}

type phase int

const (
	built phase = iota
	running
	paused
	over
)

// New builds a machine ready to run. All files are opened, the kernel is in
// memory and every check that can be made has been made: a *ConfigError is what
// the caller can mend.
func New(cfg Config) (*Machine, error) { return create(cfg, nil) }

// create builds a machine from its kernel, or from a state.
func create(cfg Config, from *State) (m *Machine, err error) {
	cfg, template, err := cfg.withDefaults()
	if err != nil {
		return nil, &ConfigError{err}
	}
	m = &Machine{cfg: cfg, log: cfg.Log, started: make(chan struct{}), ended: make(chan struct{})}
	m.release = sync.OnceValue(m.giveBack)
	m.timeline.add("begin", time.Now())
	defer func() {
		if err != nil {
			err = errors.Join(err, m.release())
			m = nil
		}
	}()
	if err := m.makeRAM(from); err != nil {
		return m, err
	}
	var regs pvh.Regs
	if from == nil {
		if regs, err = m.loadKernel(); err != nil {
			return m, err
		}
	}
	// All in turn: a goroutine this early costs a new thread, which is more
	// than any of these could win beside the others. Memory goes in before the
	// interrupt controllers, whose making leaves KVM's SRCU with a grace period
	// to wait for: 0.1 ms instead of 6 (docs/performance.md).
	if m.host, err = openHypervisor(cfg); err != nil {
		return m, err
	}
	m.vm = m.host.vm
	m.timeline.add("vm made", time.Now())
	if err := mapRAM(m.vm, m.mem); err != nil {
		return m, err
	}
	m.timeline.add("memory mapped", time.Now())
	if err := m.populate(template); err != nil {
		return m, err
	}
	if from != nil {
		return m, m.restore(from)
	}
	return m, m.enter(regs)
}

// populate makes what lies between the VM and its first instruction:
// interrupt controllers, vCPUs, devices.
func (m *Machine) populate(template cpu.Template) error {
	if err := m.host.populate(m.cfg.CPUs); err != nil {
		return err
	}
	if err := m.addDevices(); err != nil {
		return err
	}
	var t *tracer
	if m.cfg.Trace != nil {
		t = newTracer(m.cfg.Trace, &m.ports, &m.mmio)
		m.closers = append(m.closers, t.close)
	}
	for i, k := range m.host.vcpus {
		if err := k.SetCPUID(cpu.Build(m.host.host, template, i, m.cfg.CPUs)); err != nil {
			return err
		}
		v := cpu.New(k, &m.ports, &m.mmio)
		if t != nil {
			v.Trace = t.exit
		}
		m.vcpus = append(m.vcpus, v)
	}
	return nil
}

// mapRAM gives the guest its memory, one slot for each range.
func mapRAM(vm *kvm.VM, mem *guestmem.Memory) error {
	for i, r := range mem.Ranges() {
		err := vm.SetMemory(kvm.UserspaceMemoryRegion{
			Slot: uint32(i), GuestPhysAddr: r.GPA, MemorySize: r.Size, UserspaceAddr: uint64(mem.Base(i)),
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// enter puts the boot processor before the kernel's first instruction. The
// others wait for their INIT-SIPI, as KVM makes them.
func (m *Machine) enter(r pvh.Regs) error {
	k := m.host.vcpus[bootVCPU]
	base, err := k.Sregs()
	if err != nil {
		return err
	}
	for _, c := range m.host.vcpus {
		cpu.SetMSRs(c)
	}
	regs, sregs := cpu.Entry(base, r)
	return errors.Join(k.SetSregs(sregs), k.SetRegs(regs))
}

// Run runs the guest until it ends, Stop is called or ctx is done, and says how
// it ended. An error is the monitor's or the host's own failure, not the
// guest's. A machine runs once.
func (m *Machine) Run(ctx context.Context) (Exit, error) {
	m.mu.Lock()
	if m.ran || m.phase == over {
		m.mu.Unlock()
		return Exit{}, errors.New("machine: Run called twice, or after Close")
	}
	m.ran = true
	if err := m.confine(); err != nil {
		m.mu.Unlock()
		return Exit{}, fmt.Errorf("confinement: %w", err)
	}
	m.runs.Add(1)
	defer m.runs.Done()
	var done sync.WaitGroup
	m.timeline.add("run", time.Now())
	close(m.started)
	for _, v := range m.vcpus {
		done.Add(1)
		go func() {
			defer done.Done()
			defer m.caught()
			m.vcpuEnded(v.Run())
		}()
	}
	if m.phase == built {
		m.phase = running
	}
	m.mu.Unlock()

	stopped := context.AfterFunc(ctx, func() {
		m.end(Exit{End: EndStopped, Cause: context.Cause(ctx), Detail: context.Cause(ctx).Error()})
	})
	defer stopped()
	<-m.ended
	for _, v := range m.vcpus {
		v.Stop()
	}
	done.Wait()
	m.mu.Lock()
	m.phase = over
	m.mu.Unlock()
	// What the guest printed last is out before the caller hears of its end.
	if err := m.com1.Quiesce(); err != nil {
		m.log.Warn("console output lost", "err", err)
	}
	return m.exit, m.hostErr
}

// confine puts on what the configuration asks for.
func (m *Machine) confine() error {
	c := m.cfg.Confine
	if c.Mode == ConfineOff {
		return nil
	}
	return jail.Apply(jail.Config{Mode: c.Mode, Groups: jail.Strict(jail.Machine{
		Console: c.Console, Disks: len(m.cfg.Disks) > 0, BlockDevices: m.blockDevices,
		Network: len(m.cfg.Nets) > 0, Vsock: m.cfg.Vsock != nil && m.cfg.Vsock.Path != "", Log: c.Log, API: c.API, APITCP: c.APITCP,
	})})
}

// caught turns a panic on a vCPU's thread, where most of the monitor runs, into
// the machine's end: the caller restores its terminal and reports, as it does
// with any error. Deferred calls have released the locks.
func (m *Machine) caught() {
	if p := recover(); p != nil {
		m.fail(fmt.Errorf("the monitor panicked, which is a bug in it: %v\n%s", p, debug.Stack()))
	}
}

// fail ends the machine by the monitor's or the host's fault.
func (m *Machine) fail(err error) {
	m.endOnce.Do(func() {
		m.hostErr = err
		close(m.ended)
	})
}

// vcpuEnded takes in why a vCPU stopped.
func (m *Machine) vcpuEnded(s cpu.Stop) {
	switch s.Kind {
	case cpu.StopAsked:
	case cpu.StopHostError:
		m.fail(fmt.Errorf("vCPU %d: %s", s.VCPU, s.Detail))
	default:
		m.end(exitOf(s))
	}
}

// end ends the machine; the first end counts.
func (m *Machine) end(e Exit) {
	m.endOnce.Do(func() {
		m.timeline.add("end", time.Now())
		m.exit = e
		close(m.ended)
	})
	// A vCPU that ended its machine by a port write must not run on: its
	// next instruction would already be the guest's death throes.
	for _, v := range m.vcpus {
		v.Stop()
	}
}

// Stop ends the machine as if its power were cut: Run returns EndStopped.
func (m *Machine) Stop() { m.end(Exit{End: EndStopped, Detail: "stopped by the host"}) }

// InjectBreak sends a break on the console line.
func (m *Machine) InjectBreak() { m.com1.InjectBreak() }

// NetStats gives the counters of each interface, in the order of Config.Nets. What
// became of a frame behind it, the network knows.
func (m *Machine) NetStats() []NetStats {
	out := make([]NetStats, len(m.nets))
	for i, d := range m.nets {
		out[i] = d.Stats()
	}
	return out
}

// SetLink plugs the cable of an interface in or out, by its place in Config.Nets.
// The guest hears of it; while it is out no frame passes.
func (m *Machine) SetLink(number int, up bool) error {
	if number < 0 || number >= len(m.nets) {
		return fmt.Errorf("machine: no interface %d, it has %d", number, len(m.nets))
	}
	m.nets[number].SetLink(up)
	return nil
}

// Timeline gives the moments of the machine's start so far: "begin", "memory
// ready", "kernel loaded", "vm made", "memory mapped", "run", "console" (the
// first byte), "end", and "mark N" for each byte N that the guest wrote to the
// mark port.
func (m *Machine) Timeline() []Moment { return m.timeline.all() }

// Close ends the machine if it still runs, waits for everything it started and
// gives every file, mapping and goroutine back. Run, if it is under way, returns
// first. A second Close does nothing.
func (m *Machine) Close() error {
	m.Stop()
	m.mu.Lock()
	m.phase = over
	m.mu.Unlock()
	m.runs.Wait()
	return m.release()
}

// giveBack undoes create in reverse, as far as create came.
func (m *Machine) giveBack() error {
	var errs []error
	for i := len(m.closers) - 1; i >= 0; i-- {
		errs = append(errs, m.closers[i]())
	}
	if m.host != nil {
		errs = append(errs, m.host.close())
	}
	if m.mem != nil {
		errs = append(errs, m.mem.Close())
	}
	return errors.Join(errs...)
}
