package api

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/client"
)

// followed is the version of Firecracker whose API description the paths follow.
const followed = "1.17.0"

// Defaults of a machine that is configured over the socket: Firecracker's.
const (
	defaultCPUs      = 1
	defaultMemoryMiB = 128
)

func (s *Server) describe(*call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return struct {
		App     string       `json:"app_name"`
		ID      string       `json:"id"`
		State   client.State `json:"state"`
		Version string       `json:"vmm_version"`
	}{"smolvmm", s.cfg.ID, s.state, s.cfg.Version}, nil
}

func (s *Server) getVersion(*call) (any, error) {
	return map[string]string{"firecracker_version": followed}, nil
}

// Whole is a machine's configuration with the defaults in it.
func (m MachineConfig) Whole() MachineConfig {
	fill(&m.CPUs, defaultCPUs)
	fill(&m.MemoryMiB, defaultMemoryMiB)
	fill(&m.SMT, false)
	fill(&m.CPUTemplate, "None")
	fill(&m.TrackDirtyPages, false)
	fill(&m.HugePages, "None")
	m.HTEnabled = nil
	return m
}

func fill[T any](p **T, v T) {
	if *p == nil {
		*p = &v
	}
}

// check refuses what smolvmm cannot make.
func (m MachineConfig) check() error {
	w := m.Whole()
	const mib = 1 << 20
	switch {
	case *w.CPUs < 1 || *w.CPUs > vmm.MaxCPUs:
		return badf("vcpu_count %d: must be between 1 and %d.", *w.CPUs, vmm.MaxCPUs)
	case *w.MemoryMiB < vmm.MinMemory/mib || *w.MemoryMiB > vmm.MaxMemory/mib:
		return badf("mem_size_mib %d: must be between %d and %d.", *w.MemoryMiB, vmm.MinMemory/mib, vmm.MaxMemory/mib)
	case *w.SMT || m.HTEnabled != nil && *m.HTEnabled:
		return badf("smt: smolvmm's guests have no hyperthreads.")
	case *w.CPUTemplate != "None" && *w.CPUTemplate != "":
		return badf("cpu_template %.32q: smolvmm has none of these: its flag -cpu has templates.", *w.CPUTemplate)
	case *w.TrackDirtyPages:
		return badf("track_dirty_pages: smolvmm writes no snapshots to files.")
	case *w.HugePages != "None" && *w.HugePages != "2M":
		return badf("huge_pages %.32q: must be None or 2M.", *w.HugePages)
	}
	return nil
}

func (s *Server) getMachine(*call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.spec.Machine.Whole(), nil
}

func (s *Server) putMachine(c *call) (any, error) {
	var m MachineConfig
	if err := c.need(&m, "vcpu_count", "mem_size_mib"); err != nil {
		return nil, err
	}
	return s.configure(func(spec *Spec) error {
		if err := m.check(); err != nil {
			return err
		}
		spec.Machine = m.Whole()
		return nil
	})
}

func (s *Server) patchMachine(c *call) (any, error) {
	// What the body leaves out stays; one that is refused changes nothing.
	var m MachineConfig
	if err := c.need(&m); err != nil {
		return nil, err
	}
	if m == (MachineConfig{}) {
		return nil, badf("Empty PATCH request.")
	}
	return s.configure(func(spec *Spec) error {
		merged := spec.Machine.Whole()
		take(&merged.CPUs, m.CPUs)
		take(&merged.MemoryMiB, m.MemoryMiB)
		take(&merged.SMT, m.SMT)
		take(&merged.HTEnabled, m.HTEnabled)
		take(&merged.CPUTemplate, m.CPUTemplate)
		take(&merged.TrackDirtyPages, m.TrackDirtyPages)
		take(&merged.HugePages, m.HugePages)
		if err := merged.check(); err != nil {
			return err
		}
		spec.Machine = merged.Whole()
		return nil
	})
}

func take[T any](into **T, from *T) {
	if from != nil {
		*into = from
	}
}

func (s *Server) putBoot(c *call) (any, error) {
	var b BootSource
	if err := c.need(&b, "kernel_image_path"); err != nil {
		return nil, err
	}
	return s.configure(func(spec *Spec) error {
		if err := isFile("The kernel file cannot be opened", b.Kernel); err != nil {
			return err
		}
		if b.Initrd != "" {
			if err := isFile("The initrd file cannot be opened", b.Initrd); err != nil {
				return err
			}
		}
		spec.Boot = b
		return nil
	})
}

// isFile refuses a path that is no file to read from; the loader has the last
// word.
func isFile(what, path string) error {
	st, err := os.Stat(path)
	var p *os.PathError
	switch {
	case errors.As(err, &p):
		return badf("%s: %.256q: %w.", what, path, p.Err)
	case err != nil:
		return badf("%s: %.256q: %w.", what, path, err)
	case st.IsDir():
		return badf("%s: %.256q is a folder.", what, path)
	}
	return nil
}

// maxDevices bounds a list before the machine's own limit is known.
const maxDevices = 32

// sameID holds the ID in a path to the one in the body.
func sameID(path, body string) error {
	if err := checkID(path); err != nil {
		return badf("%w", err)
	}
	if path != body {
		return badf("The id from the path [%s] does not match the id from the body [%.64s]!", path, body)
	}
	return nil
}

func (s *Server) putDrive(c *call) (any, error) {
	var d Drive
	if err := c.need(&d, "drive_id", "is_root_device"); err != nil {
		return nil, err
	}
	if err := errors.Join(sameID(c.id, d.ID), d.check()); err != nil {
		return nil, badf("%w", err)
	}
	return s.configure(func(spec *Spec) error {
		if err := isFile("Unable to open the block device", d.Path); err != nil {
			return err
		}
		list := slices.DeleteFunc(slices.Clone(spec.Drives), func(o Drive) bool { return o.ID == d.ID })
		switch {
		case d.Root && len(list) > 0 && list[0].Root:
			return badf("A root block device already exists: %s.", list[0].ID)
		case len(list) >= maxDevices:
			return badf("At most %d drives.", maxDevices)
		case d.Root: // the guest's first disk
			list = slices.Insert(list, 0, d)
		default:
			at := slices.IndexFunc(spec.Drives, func(o Drive) bool { return o.ID == d.ID && !o.Root })
			if at < 0 || at > len(list) {
				at = len(list)
			}
			list = slices.Insert(list, at, d)
		}
		spec.Drives = list
		return nil
	})
}

// check refuses what smolvmm's disks cannot be.
func (d Drive) check() error {
	switch {
	case d.Socket != "":
		return errors.New("socket: smolvmm has no vhost-user disks")
	case d.Path == "":
		return errors.New("path_on_host: there must be one")
	case d.PartUUID != "":
		return errors.New("partuuid: NetBSD finds its root by root=ld0a or root=NAME=… in boot_args")
	case d.Cache != "" && d.Cache != "Unsafe" && d.Cache != "Writeback":
		return fmt.Errorf("cache_type %.32q: must be Unsafe or Writeback", d.Cache)
	case d.Engine != "" && d.Engine != "Sync" && d.Engine != "Async":
		return fmt.Errorf("io_engine %.32q: must be Sync or Async", d.Engine)
	case !d.Limiter.none():
		return errors.New("rate_limiter: smolvmm's disks have none: leave it out")
	}
	return nil
}

func (s *Server) patchDrive(c *call) (any, error) {
	var p DrivePatch
	if err := c.need(&p, "drive_id"); err != nil {
		return nil, err
	}
	if err := sameID(c.id, p.ID); err != nil {
		return nil, err
	}
	if _, err := s.machine(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	known := slices.ContainsFunc(s.spec.Drives, func(d Drive) bool { return d.ID == p.ID })
	s.mu.Unlock()
	switch {
	case !known:
		return nil, badf("There is no drive %s.", p.ID)
	case p.Path != "":
		return nil, badf("path_on_host: a confined machine opens no file any more: give it all its disks before the start.")
	case !p.Limiter.none():
		return nil, badf("rate_limiter: smolvmm's disks have none.")
	}
	return nil, nil
}

func (s *Server) putNet(c *call) (any, error) {
	var n NetworkInterface
	if err := c.need(&n, "iface_id", "host_dev_name"); err != nil {
		return nil, err
	}
	if err := errors.Join(sameID(c.id, n.ID), n.check()); err != nil {
		return nil, badf("%w", err)
	}
	return s.configure(func(spec *Spec) error {
		list := slices.Clone(spec.Nets)
		at := slices.IndexFunc(list, func(o NetworkInterface) bool { return o.ID == n.ID })
		if slices.ContainsFunc(list, func(o NetworkInterface) bool {
			return o.ID != n.ID && n.MAC != "" && strings.EqualFold(o.MAC, n.MAC)
		}) {
			return badf("The MAC address is already in use: %s.", n.MAC)
		}
		switch {
		case at >= 0:
			list[at] = n
		case len(list) >= maxDevices:
			return badf("At most %d network interfaces.", maxDevices)
		default:
			list = append(list, n)
		}
		spec.Nets = list
		return nil
	})
}

// What an interface's MTU may be, in bytes: IPv6's least (RFC 8200 §5), and the
// largest that fits an IPv4 packet with room to spare, as of -net.
const (
	minMTU = 1280
	maxMTU = 65520
)

// check refuses what smolvmm's interfaces cannot be.
func (n NetworkInterface) check() error {
	mac, err := net.ParseMAC(n.MAC)
	switch {
	case n.AllowMMDS:
		return errors.New("allow_mmds_requests: smolvmm has no metadata service")
	case n.MAC != "" && (err != nil || len(mac) != 6 || mac[0]&1 != 0 || bytes.Equal(mac, make([]byte, 6))):
		return fmt.Errorf("guest_mac %.32q: must be a station's address like 02:00:5e:10:00:01", n.MAC)
	case n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU):
		return fmt.Errorf("mtu %d: must be between %d and %d", n.MTU, minMTU, maxMTU)
	}
	for _, l := range []struct {
		name    string
		limiter *RateLimiter
	}{{"rx_rate_limiter", n.RX}, {"tx_rate_limiter", n.TX}} {
		if _, err := l.limiter.Limit(); err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
	}
	return nil
}

func (s *Server) patchNet(c *call) (any, error) {
	var p NetworkPatch
	if err := c.need(&p, "iface_id"); err != nil {
		return nil, err
	}
	if err := sameID(c.id, p.ID); err != nil {
		return nil, err
	}
	if _, err := s.machine(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	known := slices.ContainsFunc(s.spec.Nets, func(n NetworkInterface) bool { return n.ID == p.ID })
	s.mu.Unlock()
	switch {
	case !known:
		return nil, badf("There is no network interface %s.", p.ID)
	case p.RX != nil || p.TX != nil:
		return nil, badf("rx_rate_limiter, tx_rate_limiter: smolvmm sets rates before the start only.")
	}
	return nil, nil
}

func (s *Server) putVsock(c *call) (any, error) {
	var v Vsock
	if err := c.need(&v, "guest_cid", "uds_path"); err != nil {
		return nil, err
	}
	switch {
	case v.CID < 3 || v.CID >= 1<<32-1:
		return nil, badf("guest_cid %d: must be between 3 and 4294967294.", v.CID)
	case v.Path == "":
		return nil, badf("uds_path: there must be one.")
	}
	return s.configure(func(spec *Spec) error {
		spec.Vsock = &v
		return nil
	})
}

func (s *Server) patchVM(c *call) (any, error) {
	var v vmState
	if err := c.need(&v, "state"); err != nil {
		return nil, err
	}
	switch v.State {
	case "Paused":
		return s.setState(client.Paused)
	case "Resumed":
		return s.setState(client.Running)
	}
	return nil, badf("unknown variant `%.32s`, expected `Paused` or `Resumed`.", v.State)
}

func (s *Server) putAction(c *call) (any, error) {
	var a action
	if err := c.need(&a, "action_type"); err != nil {
		return nil, err
	}
	switch a.Type {
	case "InstanceStart":
		return s.start()
	case "SendCtrlAltDel":
		return s.shutdown(c)
	case "FlushMetrics":
		return nil, s.flushMetrics(true)
	}
	return nil, badf("unknown variant `%.32s`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel`.", a.Type)
}

// getConfig is the whole description, with null where Firecracker has it.
func (s *Server) getConfig(*call) (any, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]any{
		"balloon": nil, "cpu-config": nil, "entropy": nil, "mmds-config": nil, "memory-hotplug": nil, "pmem": []any{},
		"drives": append([]Drive{}, s.spec.Drives...), "network-interfaces": append([]NetworkInterface{}, s.spec.Nets...),
		"boot-source": nil, "machine-config": s.spec.Machine.Whole(), "vsock": s.spec.Vsock, "logger": nil, "metrics": nil,
	}
	if s.spec.Boot.Kernel != "" {
		out["boot-source"] = s.spec.Boot
	}
	if s.sink != nil {
		out["metrics"] = metricsSink{s.sink.path}
	}
	if s.cfg.Log != nil {
		if l, ok := s.cfg.Log.configured(); ok {
			out["logger"] = l
		}
	}
	return out, nil
}
