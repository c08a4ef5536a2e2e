package vmm

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/vmm/guestmem"
	"github.com/smolvmm/smolvmm/vmm/internal/cpu"
	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// State is a paused machine: what a new one needs to go on where it stopped,
// besides the same Config.
type State struct {
	mem      *guestmem.Memory // the very memory the machine ran on, not a copy
	Memory   uint64           // bytes
	CPUs     []cpu.State
	IRQChips [irqChipCount]kvm.IRQChip
	PIT      kvm.PITState
	Clock    uint64 // kvmclock, nanoseconds
	Devices  map[string]json.RawMessage
	// Disks are the files behind the disks, by index: open, and locked as the
	// machine had them, so that no one else gets in between.
	Disks []DiskFiles
}

// DiskFiles are the open files of one disk; Overlay is nil where there is none.
type DiskFiles struct{ Image, Overlay *os.File }

// Close gives up what Restore has not taken over.
func (s *State) Close() error {
	var errs []error
	for _, f := range s.files() {
		if err := f.Close(); !errors.Is(err, os.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if s.mem != nil {
		errs = append(errs, s.mem.Close())
	}
	s.mem, s.Disks = nil, nil
	return errors.Join(errs...)
}

// RAM is the file that the guest's memory is, by address and without the hole
// below 4 GiB, for another process or a second mapping. It stays the state's. With
// PagesTransparent and PagesSmall it is nil, unless the host refused private memory.
func (s *State) RAM() *os.File {
	if s.mem == nil {
		return nil
	}
	return s.mem.File()
}

func (s *State) files() (out []*os.File) {
	for _, d := range s.Disks {
		for _, f := range []*os.File{d.Image, d.Overlay} {
			if f != nil {
				out = append(out, f)
			}
		}
	}
	return out
}

// Pause stops the guest between two instructions, and every device between two
// requests: nothing of it touches memory or files until Resume.
func (m *Machine) Pause() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch m.phase {
	case paused:
		return nil
	case over:
		return errors.New("machine: it has ended")
	}
	for _, v := range m.vcpus {
		v.Park()
	}
	for _, v := range m.vcpus {
		v.WaitParked()
	}
	if m.isEnded() {
		return errors.New("machine: it has ended")
	}
	for i, d := range m.stateful {
		if err := d.Quiesce(); err != nil {
			for _, u := range m.stateful[:i+1] {
				err = errors.Join(err, u.Resume())
			}
			for _, v := range m.vcpus {
				v.Unpark()
			}
			return fmt.Errorf("pause %s: %w", d.name, err)
		}
	}
	m.phase = paused
	return nil
}

func (m *Machine) isEnded() bool {
	select {
	case <-m.ended:
		return true
	default:
		return false
	}
}

// Resume lets a paused guest go on.
func (m *Machine) Resume() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase != paused {
		return errors.New("machine: it is not paused")
	}
	// In reverse, so that what interrupts find is there before what causes them.
	for i := len(m.stateful) - 1; i >= 0; i-- {
		if err := m.stateful[i].Resume(); err != nil {
			return fmt.Errorf("resume %s: %w", m.stateful[i].name, err)
		}
	}
	for i, v := range m.vcpus {
		if err := v.K.ClockPaused(); err != nil {
			m.log.Debug("kvmclock not told of the pause", "vcpu", i, "err", err)
		}
		v.Unpark()
	}
	m.phase = running
	return nil
}

// Snapshot takes the state of a paused machine. The machine can be resumed
// afterwards, or closed and its state given to Restore; never both, as they
// share the memory.
func (m *Machine) Snapshot() (_ *State, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.phase != paused {
		return nil, errors.New("machine: it is not paused")
	}
	s := &State{Memory: m.mem.Size(), Devices: map[string]json.RawMessage{}}
	// KVM's own timer may raise its pin even now. With the IOAPIC first, an
	// interrupt that it has sent is in the local APIC that is read later; the
	// other way round, its pin would wait for ever for the EOI of an interrupt
	// that no processor knows.
	for i := range s.IRQChips {
		if s.IRQChips[i], err = m.vm.IRQChip(uint32(i)); err != nil {
			return nil, err
		}
	}
	for _, k := range m.host.vcpus {
		c, err := cpu.Save(k, m.host.msrs)
		if err != nil {
			return nil, err
		}
		s.CPUs = append(s.CPUs, c)
	}
	if s.PIT, err = m.vm.PIT(); err != nil {
		return nil, err
	}
	clock, err := m.vm.Clock()
	if err != nil {
		return nil, err
	}
	s.Clock = clock.Clock
	for _, d := range m.stateful {
		if s.Devices[d.name], err = d.State(); err != nil {
			return nil, fmt.Errorf("state of %s: %w", d.name, err)
		}
	}
	borrowed := *s
	borrowed.mem = m.mem
	for _, d := range m.disks {
		image, overlay := d.Files()
		borrowed.Disks = append(borrowed.Disks, DiskFiles{image, overlay})
	}
	own, err := borrowed.duplicates()
	if err != nil {
		return nil, errors.Join(err, own.Close())
	}
	return own, nil
}

// duplicate gives a second descriptor of an open file, in whatever mode of
// blocking the first one is.
func duplicate(f *os.File) (*os.File, error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	fd, dupErr := -1, error(nil)
	if err = rc.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err == nil {
		err = dupErr
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// Restore builds a machine from a state and takes its files over; where it fails
// the state is whole and can be tried again. The configuration is the one the
// state was taken under; its kernel, command line, modules and disk paths are
// not opened again, and its memory is the state's, of whatever pages. The new
// machine is paused: Run and Resume set it going, in either order.
func Restore(cfg Config, s *State) (*Machine, error) {
	if s.mem == nil {
		return nil, errors.New("restore: the state has no RAM, or was restored before")
	}
	if len(s.Disks) != len(cfg.Disks) {
		return nil, &ConfigError{fmt.Errorf("restore: the state has %d disks, the configuration %d", len(s.Disks), len(cfg.Disks))}
	}
	// The machine gets descriptors of its own, and the state keeps its until
	// the machine stands.
	own, err := s.duplicates()
	if err != nil {
		return nil, errors.Join(err, own.Close())
	}
	cfg.Disks = append([]Disk(nil), cfg.Disks...)
	for i, f := range own.Disks {
		d := &cfg.Disks[i]
		if (f.Overlay != nil) != d.Overlay {
			err := fmt.Errorf("restore: disk %d is an overlay in the state or in the configuration, not in both", i)
			return nil, errors.Join(&ConfigError{err}, own.Close())
		}
		d.File, d.OverlayFile, d.OverlayPath = f.Image, f.Overlay, ""
	}
	m, err := create(cfg, own)
	if err != nil {
		return nil, errors.Join(err, own.Close())
	}
	return m, s.Close()
}

// duplicates gives a copy of the state with descriptors of its own.
func (s *State) duplicates() (*State, error) {
	own := *s
	own.mem, own.Disks = s.mem.Retain(), nil
	for _, d := range s.Disks {
		var df DiskFiles
		var err error
		if df.Image, err = duplicate(d.Image); err == nil && d.Overlay != nil {
			df.Overlay, err = duplicate(d.Overlay)
		}
		own.Disks = append(own.Disks, df)
		if err != nil {
			return &own, err
		}
	}
	return &own, nil
}

// restore fills a machine made by create.
func (m *Machine) restore(s *State) error {
	if len(s.CPUs) != len(m.host.vcpus) {
		return &ConfigError{fmt.Errorf("restore: the state has %d CPUs, the configuration %d", len(s.CPUs), len(m.host.vcpus))}
	}
	if len(s.Devices) != len(m.stateful) {
		return &ConfigError{fmt.Errorf("restore: the state has %d devices, the configuration %d", len(s.Devices), len(m.stateful))}
	}
	for _, d := range m.stateful {
		b, ok := s.Devices[d.name]
		if !ok {
			return &ConfigError{fmt.Errorf("restore: the state knows no %s", d.name)}
		}
		if err := d.Restore(b); err != nil {
			return fmt.Errorf("restore %s: %w", d.name, err)
		}
	}
	for i, k := range m.host.vcpus {
		if err := cpu.Restore(k, s.CPUs[i]); err != nil {
			return err
		}
		m.vcpus[i].Park()
	}
	// The IOAPIC delivers what is pending as its state is set, so the local
	// APICs are there before it.
	for _, c := range s.IRQChips {
		if err := m.vm.SetIRQChip(c); err != nil {
			return err
		}
	}
	if err := errors.Join(m.vm.SetPIT(s.PIT), m.vm.SetClock(s.Clock)); err != nil {
		return err
	}
	m.phase = paused
	m.timeline.add("restored", time.Now())
	return nil
}
