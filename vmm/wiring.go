package vmm

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/smolvmm/smolvmm/devices"
	"github.com/smolvmm/smolvmm/devices/blk"
	"github.com/smolvmm/smolvmm/devices/blk/disk"
	"github.com/smolvmm/smolvmm/devices/fwcfg"
	"github.com/smolvmm/smolvmm/devices/mmio"
	"github.com/smolvmm/smolvmm/devices/net"
	"github.com/smolvmm/smolvmm/devices/ports"
	"github.com/smolvmm/smolvmm/devices/rtc"
	"github.com/smolvmm/smolvmm/devices/uart"
	"github.com/smolvmm/smolvmm/vmm/internal/kvm"
)

// addDevices builds every device and puts it on its bus. What is opened is put
// on m.closers at once, so that a failure half-way leaves nothing behind.
func (m *Machine) addDevices() error {
	m.com1 = uart.New(uart.Config{
		Out: m.cfg.ConsoleOut, In: m.cfg.ConsoleIn,
		Line:        newPin(m.vm, irqCOM1),
		OnFirstByte: func() { m.timeline.add("console", time.Now()) },
	})
	m.closers = append(m.closers, m.com1.Close)
	fw, err := fwcfg.New(m.cfg.Items)
	if err != nil {
		return &ConfigError{err}
	}
	m.closers = append(m.closers, fw.Close)
	clock := rtc.New(nil)
	small := ports.New(ports.Config{Event: m.portEvent})
	err = errors.Join(
		m.ports.Add("com1", portCOM1, uart.Size, m.com1),
		m.ports.Add("rtc", portRTC, rtc.Size, clock),
		m.ports.Add("fw_cfg", portFwCfg, fwcfg.Size, fw),
	)
	for _, r := range small.Regions() {
		err = errors.Join(err, m.ports.Add(r.Name, uint64(r.Base), uint64(r.Len), r))
	}
	if err != nil {
		return err
	}
	m.keep("com1", m.com1)
	m.keep("rtc", clock)
	m.keep("fw_cfg", fw)
	m.keep("ports", small)
	for i, d := range m.cfg.Disks {
		if err := m.addDisk(i, d); err != nil {
			return err
		}
	}
	for i, n := range m.cfg.Nets {
		if err := m.addNet(i, n); err != nil {
			return err
		}
	}
	if m.cfg.Vsock != nil {
		return m.addVsock(*m.cfg.Vsock)
	}
	return nil
}

// portEvent takes in what a guest said through one of the small ports.
func (m *Machine) portEvent(e ports.Event) {
	switch e.Kind {
	case ports.Milestone:
		m.timeline.mark(e.Status, time.Now())
		if m.cfg.Marked != nil {
			m.cfg.Marked(e.Status)
		}
	case ports.ExitPort:
		m.end(Exit{End: EndExit, Status: int(e.Status)})
	default:
		m.end(Exit{End: EndReboot, Detail: e.Kind.String()})
	}
}

func (m *Machine) keep(name string, d devices.Stateful) {
	m.stateful = append(m.stateful, namedDevice{name, d})
}

func (m *Machine) addDisk(i int, o Disk) error {
	b, err := disk.Open(o)
	if err != nil {
		return &ConfigError{err}
	}
	files, ok := b.(disk.Files)
	if !ok {
		return errors.Join(fmt.Errorf("disk %d: its files cannot be told", i), b.Close())
	}
	m.disks = append(m.disks, files)
	image, _ := files.Files()
	if st, err := image.Stat(); err == nil && st.Mode()&os.ModeDevice != 0 {
		m.blockDevices = true
	}
	d := blk.New(blk.Config{Backend: b, Log: m.log})
	m.blks = append(m.blks, d)
	return m.addVirtio(fmt.Sprintf("disk%d", i), d, d.Close)
}

// addNet attaches an interface. Its backend is the caller's, and outlives it.
func (m *Machine) addNet(i int, n Net) error {
	if n.Log == nil {
		n.Log = m.log
	}
	d, err := net.New(n)
	if err != nil {
		return &ConfigError{fmt.Errorf("interface %d: %w", i, err)}
	}
	m.nets = append(m.nets, d)
	return m.addVirtio(fmt.Sprintf("net%d", i), d, d.Close)
}

// addVirtio gives a device the next transport, its pin and its doorbells.
func (m *Machine) addVirtio(name string, d devices.Virtio, closeDevice func() error) error {
	m.closers = append(m.closers, closeDevice)
	slot := len(m.pins)
	p := newPin(m.vm, virtioPins[slot])
	m.pins = append(m.pins, p)
	t, err := mmio.New(d, m.mem, p)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	m.closers = append(m.closers, t.Close)
	base := uint64(mmioBase + slot*mmioStride)
	for q := range t.Queues() {
		if err := m.vm.AddIOEventFD(kvm.IOEventFD{
			DataMatch: uint64(q), Addr: base + mmio.NotifyOffset, Len: 4,
			FD: int32(t.Doorbell(q).FD()), Flags: kvm.IOEventFDDataMatch,
		}); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	m.keep(name, t)
	return m.mmio.Add(name, base, mmio.RegionSize, t)
}
