package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// siocAIFAddrIn6 is _IOW('i', 107, struct in6_aliasreq) (netinet6/in6_var.h).
const siocAIFAddrIn6 = 0x8080696b

// neighbourQueue is how many packets wait for a neighbour's address; at least
// one must (RFC 4861 §7.2.2).
const neighbourQueue = 16

// wire is a machine's network in the hands of its first process.
type wire struct {
	*system
	in, in6 int // sockets that requests about interfaces go through; in6 is -1 without IPv6
}

// loopback gives lo0 its address, which nobody else does here.
func (s *system) loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return ioctl(fd, unix.SIOCAIFADDR, ifalias("lo0", netip.MustParsePrefix("127.0.0.1/8")))
}

// network sets up the interfaces. It says what fails and goes on: a command that
// needs the network finds out, and the others need none.
func (s *system) network() {
	w := &wire{system: s}
	var err error
	if w.in, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		if s.cfg.Net != nil && len(*s.cfg.Net) > 0 {
			s.notef("network: %v", err)
		}
		return
	}
	conf, err := addresses(w.in)
	if err != nil {
		s.notef("network: interfaces: %v", err)
		unix.Close(w.in)
		return
	}
	tasks, complaints := plan(s.cfg.Net, parseIfconf(conf))
	for _, c := range complaints {
		s.notef("network: %s", c)
	}
	if w.in6, err = unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		w.in6 = -1
	}
	if len(tasks) > 0 {
		w.setUp(tasks)
	}
	// The sockets stay: an advertisement may come beside the command.
}

// outcome is what one interface has got.
type outcome struct {
	leased chan setup
	routed chan setup
}

// setUp configures all interfaces at the same time, and waits for what is to be
// waited for.
func (w *wire) setUp(tasks []task) {
	// The addresses come from the network's own server: no time is spent on
	// looking for another user of them (some seconds, in which they are of no use).
	for _, probes := range []string{"net.inet.ip.dad_count", "net.inet6.ip6.dad_count"} {
		if old, err := swapInt32(probes, 0); err == nil {
			defer func() { _, _ = swapInt32(probes, old) }()
		} else if !errors.Is(err, unix.ENOENT) { // a kernel without IPv6
			w.notef("%s: %v", probes, err)
		}
	}
	// With room for one packet per neighbour that is being asked for, the first
	// of two queries that a resolver sends at once (A and AAAA) is lost, and
	// with it 5 seconds.
	for _, queue := range []string{"net.inet.arp.maxqueuelen", "net.inet6.icmp6.maxqueuelen"} {
		if _, err := swapInt32(queue, neighbourQueue); err != nil && !errors.Is(err, unix.ENOENT) {
			w.notef("%s: %v", queue, err)
		}
	}
	outcomes := make([]outcome, len(tasks))
	for i, t := range tasks {
		outcomes[i] = w.start(t)
	}
	var setups []setup
	hostname := w.cfg.Hostname
	for i, o := range outcomes {
		s, ok := <-o.leased
		if !ok {
			continue
		}
		w.apply(tasks[i], s)
		setups = append(setups, s)
		if hostname == "" && s.Hostname != "" {
			hostname = s.Hostname
			if err := setHostname(hostname); err != nil {
				w.notef("%v", err)
			}
		}
	}
	timer := time.After(raWait)
	for _, o := range outcomes {
		select {
		case s, ok := <-o.routed:
			if ok {
				setups = append(setups, s)
			}
		case <-timer:
			timer = closedTimer()
		}
	}
	if text := resolvConf(setups); text != "" {
		w.resolver(text)
	}
}

// closedTimer is a timer that has run out, for every further wait.
func closedTimer() <-chan time.Time {
	c := make(chan time.Time)
	close(c)
	return c
}

// start brings an interface up and begins to ask for its addresses. leased
// gives what is known for IPv4, or is closed; routed, for IPv6.
func (w *wire) start(t task) outcome {
	o := outcome{make(chan setup, 1), make(chan setup, 1)}
	fail := func(format string, args ...any) outcome {
		w.notef(t.name+": "+format, args...)
		close(o.leased)
		close(o.routed)
		return o
	}
	if err := w.up(t.name); err != nil {
		return fail("bringing it up: %v", err)
	}
	if t.Address6.IsValid() {
		w.apply6(t, t.Address6, t.Gateway6)
	}
	if !t.DHCP && t.Address.IsValid() {
		o.leased <- t.static()
	}
	if !t.DHCP {
		close(o.leased)
	}
	slaac := t.slaac() && w.in6 >= 0
	if !slaac {
		close(o.routed)
	}
	if !t.DHCP && !slaac {
		return o
	}
	filter, err := openFilter(t.name)
	if err != nil {
		w.notef("%s: a packet filter: %v", t.name, err)
		if t.DHCP {
			w.fallBack(t, o)
		}
		if slaac {
			close(o.routed)
		}
		return o
	}
	begun := time.Now()
	c := &client{link: filter, mac: t.mac, xid: rand.Uint32(), hostname: w.cfg.Hostname, dhcp: t.DHCP, slaac: slaac}
	c.leased = func(s setup, err error) {
		if err != nil {
			w.notef("%s: %v", t.name, err)
			w.fallBack(t, o)
			return
		}
		w.tell("%s: DHCP: %v (%v)", t.name, s, time.Since(begun).Round(time.Millisecond))
		o.leased <- t.over(s)
		close(o.leased)
	}
	c.routed = func(a advert) {
		defer close(o.routed)
		s := setup{DNS: a.DNS}
		if a.Prefix.IsValid() {
			s.Address = a.address(t.mac)
			if a.Default {
				s.Gateway = a.Router
			}
			w.tell("%s: router advertisement: %v (%v)", t.name, s, time.Since(begun).Round(time.Millisecond))
			w.apply6(t, s.Address, s.Gateway)
		}
		o.routed <- t.over(s)
	}
	go func() {
		defer unix.Close(filter.fd)
		c.run()
	}()
	return o
}

// fallBack takes the configuration's own address where DHCP gave none.
func (w *wire) fallBack(t task, o outcome) {
	if t.Address.IsValid() {
		w.notef("%s: taking the configured %v", t.name, t.static())
		o.leased <- t.static()
	}
	close(o.leased)
}

// tell says what went well.
func (w *wire) tell(format string, args ...any) {
	if !w.cfg.Quiet {
		w.notef(format, args...)
	}
}

// up sets an interface's flag IFF_UP.
func (w *wire) up(name string) error {
	req := ifreq(name, nil)
	if err := ioctl(w.in, unix.SIOCGIFFLAGS, req); err != nil {
		return err
	}
	flags := binary.LittleEndian.Uint16(req[sizeName:])
	binary.LittleEndian.PutUint16(req[sizeName:], flags|unix.IFF_UP)
	return ioctl(w.in, unix.SIOCSIFFLAGS, req)
}

// apply gives an interface its IPv4 address, MTU and route.
func (w *wire) apply(t task, s setup) {
	if s.MTU != 0 {
		if err := w.mtu(t.name, uint32(s.MTU)); err != nil {
			w.notef("%s: MTU %d: %v", t.name, s.MTU, err)
		}
	}
	if err := ioctl(w.in, unix.SIOCAIFADDR, ifalias(t.name, s.Address)); err != nil {
		w.notef("%s: address %v: %v", t.name, s.Address, err)
		return
	}
	w.route(t, s.Gateway)
}

// mtu sets an interface's MTU. The driver starts its device anew for it, even
// where it is the same, and frames under way are lost.
func (w *wire) mtu(name string, bytes uint32) error {
	req := ifreq(name, nil)
	if err := ioctl(w.in, unix.SIOCGIFMTU, req); err == nil && binary.LittleEndian.Uint32(req[sizeName:]) == bytes {
		return nil
	}
	return ioctl(w.in, unix.SIOCSIFMTU, ifreq(name, binary.LittleEndian.AppendUint32(nil, bytes)))
}

// apply6 gives an interface an IPv6 address and route.
func (w *wire) apply6(t task, a netip.Prefix, gateway netip.Addr) {
	if w.in6 < 0 {
		w.notef("%s: address %v: the kernel has no IPv6", t.name, a)
		return
	}
	if err := ioctl(w.in6, siocAIFAddrIn6, in6alias(t.name, a)); err != nil {
		w.notef("%s: address %v: %v", t.name, a, err)
		return
	}
	w.route(t, gateway)
}

// route adds a default route, where there is none yet: the first interface's counts.
func (w *wire) route(t task, gateway netip.Addr) {
	if !gateway.IsValid() {
		return
	}
	fd, err := unix.Socket(unix.AF_ROUTE, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		_, err = unix.Write(fd, addDefault(gateway, t.index, 1))
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		w.notef("%s: default route by %v: %v", t.name, gateway, err)
	}
}

const resolvFile = "/etc/resolv.conf"

// resolver writes /etc/resolv.conf where it is not so yet.
func (w *wire) resolver(text string) {
	if old, err := os.ReadFile(resolvFile); err == nil && string(old) == text {
		return
	}
	err := os.MkdirAll("/etc", 0o755)
	if err == nil {
		err = os.WriteFile(resolvFile, []byte(text), 0o644)
	}
	if errors.Is(err, unix.EROFS) {
		w.notef("%s: the root is read-only: the image needs one with the network's name servers, or a symbolic link into /var/run", resolvFile)
	} else if err != nil {
		w.notef("%v", err)
	}
}

// filter is a packet filter on an interface (bpf(4)).
type filter struct {
	fd  int
	buf []byte
}

// filterSize is the size of a filter's buffer in bytes: some of the largest frames.
const filterSize = 16 << 10

func openFilter(name string) (f *filter, err error) {
	fd, err := openNode("bpf")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	size := binary.LittleEndian.AppendUint32(nil, filterSize)
	one, zero := []byte{1, 0, 0, 0}, []byte{0, 0, 0, 0}
	for _, r := range []struct {
		what    string
		request uint
		arg     []byte
	}{
		{"BIOCSBLEN", unix.BIOCSBLEN, size},
		{"BIOCSETIF", unix.BIOCSETIF, ifreq(name, nil)},
		{"BIOCIMMEDIATE", unix.BIOCIMMEDIATE, one},
		{"BIOCSHDRCMPLT", unix.BIOCSHDRCMPLT, one},
		{"BIOCSSEESENT", unix.BIOCSSEESENT, zero},
	} {
		if err := ioctl(fd, r.request, r.arg); err != nil {
			return nil, fmt.Errorf("%s: %w", r.what, err)
		}
	}
	if err := setFilter(fd, wanted); err != nil {
		return nil, fmt.Errorf("BIOCSETF: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, err
	}
	return &filter{fd, make([]byte, binary.LittleEndian.Uint32(size))}, nil
}

// openNode opens a device, by a node of its own where /dev lacks it and there
// is memory to make it in.
func openNode(name string) (int, error) {
	fd, err := unix.Open("/dev/"+name, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if !errors.Is(err, fs.ErrNotExist) {
		return fd, err
	}
	for _, n := range nodes {
		if n.name != name {
			continue
		}
		for _, dir := range []string{"/dev", "/var/run", "/tmp"} {
			if in, _, e := inMemory(dir); e != nil || !in {
				continue
			}
			path := dir + "/.smolinit." + name
			if unix.Mknod(path, n.kind()|uint32(n.perm), int(n.dev())) != nil {
				continue
			}
			defer os.Remove(path)
			return unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
		}
	}
	return fd, err
}

func (f *filter) send(frame []byte) error {
	_, err := unix.Write(f.fd, frame)
	return err
}

func (f *filter) receive(deadline time.Time) ([][]byte, error) {
	for {
		wait := time.Until(deadline)
		if wait <= 0 {
			return nil, nil
		}
		poll := []unix.PollFd{{Fd: int32(f.fd), Events: unix.POLLIN}}
		switch n, err := unix.Poll(poll, int(wait/time.Millisecond)+1); {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return nil, fmt.Errorf("waiting for frames: %w", err)
		case n == 0:
			return nil, nil
		}
		n, err := unix.Read(f.fd, f.buf)
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading frames: %w", err)
		}
		return packets(f.buf[:n]), nil
	}
}
