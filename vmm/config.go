package vmm

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/smolvmm/smolvmm/devices/blk/disk"
	"github.com/smolvmm/smolvmm/devices/fwcfg"
	"github.com/smolvmm/smolvmm/devices/net"
	"github.com/smolvmm/smolvmm/vmm/guestmem"
	"github.com/smolvmm/smolvmm/vmm/internal/cpu"
	"github.com/smolvmm/smolvmm/vmm/internal/jail"
)

// Defaults of a Config's zero values.
const (
	DefaultMemory = 256 << 20 // bytes
	MaxCPUs       = 32
)

// What a guest's RAM can be, in bytes: from MinMemory to MaxMemory, a multiple
// of MemoryUnit.
const (
	MinMemory  = guestmem.MinSize
	MaxMemory  = guestmem.MaxSize
	MemoryUnit = guestmem.PageSize
)

// Pages is what a guest's RAM is made of.
type Pages = guestmem.Pages

// The kinds of pages. RAM of the latter two is always a file, which State.RAM gives.
const (
	PagesTransparent = guestmem.Transparent // the host's transparent huge pages, where it has them
	PagesSmall       = guestmem.Small       // 4 KiB
	PagesReserved    = guestmem.Reserved    // 2 MiB of hugetlbfs, reserved on the host
	PagesShared      = guestmem.Shared      // a memfd, for a second mapping of RAM
)

// File is an input that is either opened by its path or handed over open.
type File struct {
	// Name is what errors call it; the path if empty.
	Name string
	Path string
	// Data is read instead of Path if it is not nil; Size is its length in bytes.
	Data io.ReaderAt
	Size int64
}

// Disk is one virtio-blk device: where its bytes are and how they may be used.
type Disk = disk.Options

// Net is one virtio-net device: the network behind it, which can be any of the
// caller's, and how much may pass. The network stays the caller's: Close it after
// the machine. Its connections are no part of a machine's state.
type Net = net.Config

// NetLimits are an interface's rates, NetLimit is one way's; NetStats are its counters.
type (
	NetLimits = net.Limits
	NetLimit  = net.Limit
	NetStats  = net.Stats
)

// Vsock is a virtio-vsock device: streams between ports of the guest and of the
// host. It has no part in a machine's state but its CID: after a restore the guest
// hears that its connections are gone.
type Vsock struct {
	// CID is the guest's address, from 3 to 2^32-2. Only the guest sees it.
	CID uint64
	// Path is the Unix socket where the host reaches the guest, and with "_P"
	// behind where the guest's connections to port P lead (Firecracker's
	// convention). Empty: DialVsock and ListenVsock alone serve it.
	Path string
	// Listener is the socket at Path, if it listens already: it is taken over,
	// its file left alone. nil makes it, and Close removes it.
	Listener *os.File
}

// Item is a file that the guest reads from the fw_cfg device.
type Item = fwcfg.Item

// NewItem makes an item with a copy of value; ReadItem one with all that r
// gives. The name begins with "opt/" and has at most 55 printable characters.
func NewItem(name string, value []byte) (Item, error) { return fwcfg.NewItem(name, value) }

// ReadItem is NewItem with the value read from r.
func ReadItem(name string, r io.Reader) (Item, error) { return fwcfg.ReadItem(name, r) }

// Config says what the guest sees and what is attached to it. The zero value of
// every field but Kernel is a working default.
type Config struct {
	// Kernel is a PVH kernel: ELF, possibly gzip-compressed.
	Kernel File
	// Cmdline goes to the kernel, with root=ld0a and console=com put in front
	// where it names neither, and the virtio-mmio devices added.
	Cmdline string
	// Initrds are PVH modules, in order.
	Initrds []File

	// Memory is the guest's RAM in bytes, 1 MiB to 64 GiB; 0 is DefaultMemory.
	Memory uint64
	// ACPI makes tables that tell of processors, interrupts, virtio-mmio devices and
	// COM1, for a kernel that knows devices from there, as distributions' Linux does;
	// the command line then names no device. NetBSD's MICROVM kernel has no ACPI.
	ACPI bool
	// Pages is what RAM is made of; the zero value is PagesTransparent.
	Pages Pages
	// CPUs is the number of vCPUs, 1 to MaxCPUs; 0 is one.
	CPUs int
	// CPU is the CPU template: "host", "baseline", either with ",-feature"s behind.
	CPU string

	// Disks are the virtio-blk devices: ld0, ld1 and so on.
	Disks []Disk
	// Nets are the virtio-net devices, behind the disks: vioif0, vioif1 and so on.
	Nets []Net
	// Vsock is the virtio-vsock device, behind both; nil is none.
	Vsock *Vsock
	// ConsoleIn feeds COM1's receiver. It is read only as fast as the guest
	// reads, and belongs to the caller: close it after Run to end a blocked Read.
	ConsoleIn io.Reader
	// ConsoleOut takes what the guest prints on COM1; nil discards it.
	ConsoleOut io.Writer
	// Items are files for the guest on the fw_cfg port. They stay the
	// caller's, to wipe when no machine needs them any more.
	Items []Item

	// Marked is told of each byte that the guest writes to the mark port, by the
	// vCPU that does and waits: it must not block. May be nil.
	Marked func(value byte)

	// KVM is an open /dev/kvm; nil opens the device.
	KVM *os.File
	// Log takes what the monitor has to say; nil discards it.
	Log *slog.Logger
	// Trace takes a line for every exit, from one goroutine; nil is silent.
	// Lines are lost, and counted, where it is slower than the guest.
	Trace io.Writer
	// Confine gives up what the process does not need any more, before the
	// guest's first instruction. The zero value leaves the process alone.
	Confine Confinement
}

// ConfineMode says what is done about a system call that a machine does not
// need: ConfineOff, ConfineEnforce, ConfineLog or ConfineTrap.
type ConfineMode = jail.Mode

// The modes; docs/jail.md tells what each does.
const (
	ConfineOff     = jail.Off
	ConfineEnforce = jail.Enforce
	ConfineLog     = jail.Log
	ConfineTrap    = jail.Trap
)

// ParseConfineMode reads "off", "enforce", "log" or "trap".
func ParseConfineMode(s string) (ConfineMode, error) { return jail.ParseMode(s) }

// ConsoleKind is what COM1 is attached to, as far as confinement has to know.
type ConsoleKind = jail.Console

// The kinds.
const (
	ConsoleNone   = jail.ConsoleNone
	ConsoleStdio  = jail.ConsoleStdio
	ConsolePty    = jail.ConsolePty
	ConsoleSocket = jail.ConsoleSocket
)

// Confinement puts seccomp, Landlock and no_new_privs on the whole process, for
// good: it is for a process that runs one machine and nothing else. A second
// machine in a confined process cannot be confined again, nor opened.
type Confinement struct {
	Mode    ConfineMode
	Console ConsoleKind
	// Log leaves writing at a place in an open file: what the machine's output goes
	// to is a log of bounded size.
	Log bool
	// API: the process listens on a Unix socket, takes connections and asks who
	// is at their other end. APITCP: on TCP ports too.
	API, APITCP bool
}

// withDefaults fills in zero values and refuses what can be refused before
// anything is opened.
func (c Config) withDefaults() (Config, cpu.Template, error) {
	if c.Memory == 0 {
		c.Memory = DefaultMemory
	}
	if c.CPUs == 0 {
		c.CPUs = 1
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.ConsoleOut == nil {
		c.ConsoleOut = io.Discard
	}
	t, err := cpu.ParseTemplate(c.CPU)
	switch {
	case err != nil:
	case c.Kernel.Path == "" && c.Kernel.Data == nil:
		err = fmt.Errorf("no kernel given")
	case c.CPUs < 1 || c.CPUs > MaxCPUs:
		err = fmt.Errorf("%d CPUs: must be between 1 and %d", c.CPUs, MaxCPUs)
	case c.Memory < MinMemory || c.Memory > MaxMemory:
		err = fmt.Errorf("%d bytes of memory: must be between 1 MiB and 64 GiB", c.Memory)
	case c.Memory%MemoryUnit != 0:
		err = fmt.Errorf("%d bytes of memory: must be a multiple of %d", c.Memory, MemoryUnit)
	case len(c.Disks)+len(c.Nets) > maxVirtio:
		err = fmt.Errorf("%d disks and %d interfaces: at most %d of both", len(c.Disks), len(c.Nets), maxVirtio)
	case c.transports() > maxVirtio:
		err = fmt.Errorf("%d disks, %d interfaces and a vsock: at most %d of all", len(c.Disks), len(c.Nets), maxVirtio)
	default:
		err = c.checkNets()
	}
	return c, t, err
}

// transports is the number of virtio devices.
func (c Config) transports() int {
	n := len(c.Disks) + len(c.Nets)
	if c.Vsock != nil {
		n++
	}
	return n
}

// checkNets refuses interfaces that cannot be, or that a guest could not tell apart.
func (c Config) checkNets() error {
	for i, n := range c.Nets {
		if err := n.Check(); err != nil {
			return fmt.Errorf("interface %d: %w", i, err)
		}
		for j, o := range c.Nets[:i] {
			if n.MAC == o.MAC {
				return fmt.Errorf("interfaces %d and %d have the address %x: each needs its own", j, i, n.MAC)
			}
		}
	}
	return nil
}

// ConfigError is an input that the caller can mend: nothing has been started.
type ConfigError struct{ Err error }

func (e *ConfigError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *ConfigError) Unwrap() error { return e.Err }

// open gives the file's bytes and what closes them.
func (f File) open() (r io.ReaderAt, size int64, closeFn func() error, err error) {
	if f.Data != nil {
		return f.Data, f.Size, func() error { return nil }, nil
	}
	h, err := os.Open(f.Path)
	if err != nil {
		return nil, 0, nil, err
	}
	st, err := h.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", f.Path)
	}
	if err != nil {
		h.Close()
		return nil, 0, nil, err
	}
	return h, st.Size(), h.Close, nil
}

func (f File) name() string {
	if f.Name != "" {
		return f.Name
	}
	return f.Path
}
