package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/smolvmm/smolvmm/netstack"
	"github.com/smolvmm/smolvmm/netstack/audit"
	"github.com/smolvmm/smolvmm/netstack/dns"
	"github.com/smolvmm/smolvmm/netstack/pcap"
	"github.com/smolvmm/smolvmm/netstack/publish"
	"github.com/smolvmm/smolvmm/vmm"
)

// Host is what a network asks of the command that it is in.
type Host struct {
	Log *slog.Logger
	// Report takes a line for the user: which port was chosen.
	Report func(line string)
	// Verbose reports every published port, not only those that were chosen.
	Verbose bool
	// ListenUnix listens on a Unix socket for this user alone, and removes a
	// stale one. Its path is the caller's to remove in the end, as Sockets says.
	ListenUnix func(path string) (*net.UnixListener, error)
	// ResolvConf is the host's resolv.conf(5); empty is /etc/resolv.conf.
	ResolvConf string
}

// Network is a machine's network, open. The zero value is none.
type Network struct {
	host   Host
	plan   *Plan
	stacks []*late
	nets   []vmm.Net
	set    *publish.Set
	unix   []*net.UnixListener
	audit  *audit.Writer

	closers []func() error // in the order of opening
	created bool
	ended   string
	serving sync.WaitGroup
	cancel  context.CancelFunc
}

// Open opens what the plan says: files, ports, a stack for each interface. An
// error is one line and the user's to mend; nothing is left open then.
func (p *Plan) Open(h Host) (n *Network, err error) {
	n = &Network{host: h, plan: p}
	if p.nothing() {
		return n, nil
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.Close())
			n = nil
		}
	}()
	// The ports first: they are what can be taken, and cost least.
	if err := n.openPorts(); err != nil {
		return n, err
	}
	if p.audit != "" {
		f, err := os.OpenFile(p.audit, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return n, fmt.Errorf("-audit %s: %w", p.audit, plain(err))
		}
		// Its lines have the local time, and package time reads the zone's file
		// when it is first asked: not after the process is confined.
		_, _ = time.Now().Zone()
		n.audit = audit.NewWriter(f, p.name)
		n.onClose(func() error {
			err := n.audit.Close()
			if cerr := f.Close(); err == nil {
				err = cerr
			}
			if err != nil {
				err = fmt.Errorf("-audit %s: %w", p.audit, plain(err))
			}
			return err
		})
	}
	var ask dns.Exchange
	for _, i := range p.Interfaces {
		if !i.HostOnly && ask == nil {
			if ask, err = n.resolvers(); err != nil {
				return n, err
			}
		}
		if err := n.openInterface(i, ask); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (n *Network) onClose(f func() error) { n.closers = append(n.closers, f) }

// openPorts listens wherever -p says, before there is a guest.
func (n *Network) openPorts() (err error) {
	if len(n.plan.publish) == 0 {
		return nil
	}
	var ports, sockets []publish.Spec
	for _, s := range n.plan.publish {
		if s.Network == "unix" {
			sockets = append(sockets, s)
		} else {
			ports = append(ports, s)
		}
	}
	if n.set, err = publish.Open(ports, publish.Config{Log: n.host.Log}); err != nil {
		return fmt.Errorf("-p: %w", err)
	}
	n.onClose(n.set.Close)
	// A confined process cannot remove its sockets, so they are opened, and in
	// the end removed, as the command does with its others.
	for _, s := range sockets {
		l, err := n.host.ListenUnix(s.Path)
		if err != nil {
			return fmt.Errorf("-p: publish %v: %w", s, plain(err))
		}
		n.unix = append(n.unix, l)
		if err := n.set.Add(s, l); err != nil {
			return errors.Join(fmt.Errorf("-p: %w", err), l.Close())
		}
	}
	asked := append(ports, sockets...) // the set's order
	for i, p := range n.set.Addrs() {
		if n.host.Verbose || p.Spec.Network != "unix" && asked[i].HostPort == 0 {
			n.host.Report(published(p))
		}
	}
	return nil
}

// published tells where a publication listens and where it leads.
func published(p publish.Published) string {
	var at []string
	for _, a := range p.Addrs {
		at = append(at, a.String())
	}
	network := p.Spec.Network
	if network == "unix" {
		network = "the socket"
	}
	to := "port " + fmt.Sprint(p.Spec.GuestPort)
	if p.Spec.Guest.IsValid() {
		to = netip.AddrPortFrom(p.Spec.Guest, p.Spec.GuestPort).String()
	}
	return fmt.Sprintf("published: %s %s leads to the guest's %s", network, strings.Join(at, " and "), to)
}

// resolvers reads which resolvers the host asks, while files can still be read.
func (n *Network) resolvers() (dns.Exchange, error) {
	path := n.host.ResolvConf
	if path == "" {
		path = "/etc/resolv.conf"
	}
	// None is the loopback's: resolv.conf(5).
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		n.host.Log.Warn("the guest's names are asked at the loopback's resolver", "err", err)
	}
	// With the names of hosts and ports as numbers package net reads no file.
	return dns.System(bytes.NewReader(b), (&net.Dialer{KeepAlive: -1}).DialContext)
}

// openInterface makes a stack and what stands before it.
func (n *Network) openInterface(i Interface, ask dns.Exchange) error {
	c := netstack.Config{
		Subnet: i.Subnet, Subnet6: i.subnet6(), MTU: i.MTU, GuestMAC: i.MAC, HostOnly: i.HostOnly,
		Hostname: n.plan.name, Log: n.host.Log,
	}
	if !i.HostOnly {
		c.HostServices, c.SearchDomain = n.plan.services, n.plan.search
		c.Policy, c.Audit = n.plan.policy, n.audit.Emit
		server, err := n.nameServer(i, ask)
		if err != nil {
			return err
		}
		c.NameServer = server
	}
	s := newLate(c)
	n.stacks = append(n.stacks, s)
	n.onClose(s.Close)
	v := vmm.Net{Backend: s, MAC: i.MAC, QueuePairs: i.Queues, Limits: i.limits()}
	if i.Capture != "" {
		f, err := os.OpenFile(i.Capture, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return fmt.Errorf("-pcap %s: %w", i.Capture, plain(err))
		}
		tap, err := pcap.New(s, f)
		if err != nil {
			return errors.Join(fmt.Errorf("-pcap %s: %w", i.Capture, plain(err)), f.Close())
		}
		v.Backend = tap
		n.onClose(func() error { return n.closeCapture(i.Capture, tap, f) })
	}
	if n.set != nil && len(n.nets) == 0 {
		v.Backend = &hinting{Backend: v.Backend, hint: n.set.Hint}
	}
	n.nets = append(n.nets, v)
	return nil
}

// hinting tells published ports of the guest's signs of life, so that connections
// that wait for it are tried again at once. It costs a frame an atomic load.
type hinting struct {
	pcap.Backend
	hint func()
}

func (b *hinting) Send(h *[12]byte, frame [][]byte) {
	b.Backend.Send(h, frame)
	b.hint()
}

// closeCapture writes a capture's end. A frame that is missing in it is worth a
// word, not the machine's status.
func (n *Network) closeCapture(path string, tap *pcap.Tap, f *os.File) error {
	err := tap.Close()
	var lost *pcap.DropError
	if errors.As(err, &lost) {
		n.host.Log.Warn("-pcap "+path, "err", lost)
		err = nil
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("-pcap %s: %w", path, plain(err))
	}
	return nil
}

// nameServer answers an interface's DNS queries.
func (n *Network) nameServer(i Interface, ask dns.Exchange) (*dns.Server, error) {
	c := dns.Config{
		Exchange: ask, Host: []netip.Addr{i.gateway(), i.gateway6()}, Names: n.plan.names, Search: n.plan.search,
	}
	if p := n.plan.policy; p != nil {
		c.AllowQuery, c.Pin = p.AllowQuery, p.Pin
		c.Denied = func(name, qtype string) {
			n.audit.Emit(audit.Event{Event: audit.EgressDenied, Name: name, Proto: "dns", Reason: qtype + " query: no rule allows the name"})
		}
	}
	return dns.New(c)
}

// Nets are the interfaces, for a vmm.Config.
func (n *Network) Nets() []vmm.Net { return n.nets }

// Sockets are the paths of Unix sockets that this network listens on. KeptSockets
// says that somebody else removes them.
func (n *Network) Sockets() []string { return n.plan.unixPaths() }

// KeptSockets leaves the removal of Sockets to the caller: a confined process
// cannot do it.
func (n *Network) KeptSockets() {
	for _, l := range n.unix {
		l.SetUnlinkOnClose(false)
	}
}

// Created says that the machine stands: published ports lead into it from here
// on, and the audit log knows of it. The error is of a stack that could not be
// made, and the user's to mend; then the machine must not run.
func (n *Network) Created() error {
	for _, s := range n.stacks {
		if s.wait() == nil {
			return s.err
		}
	}
	n.created = true
	n.audit.Emit(audit.Event{Event: audit.MachineCreated})
	if n.set == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	n.serving.Go(func() {
		if err := n.set.Serve(ctx, n.stacks[0].wait()); err != nil {
			n.host.Log.Error("published ports", "err", err)
		}
	})
	return nil
}

// Addrs tells where published ports listen and where they lead, a line for each.
func (n *Network) Addrs() (out []string) {
	if n.set == nil {
		return nil
	}
	for _, p := range n.set.Addrs() {
		for _, a := range p.Addrs {
			out = append(out, fmt.Sprintf("%v->%d/%s", a, p.Spec.GuestPort, strings.Replace(p.Spec.Network, "unix", "tcp", 1)))
		}
	}
	return out
}

// How long a guest's port that is waited for is tried, and left alone in between.
const (
	tryPort   = 200 * time.Millisecond
	pausePort = 20 * time.Millisecond
)

// Answers waits until the guest takes a TCP connection at a port, or ctx is done.
func (n *Network) Answers(ctx context.Context, port uint16) error {
	if len(n.stacks) == 0 {
		return errors.New("the machine has no network to ask a port over")
	}
	s := n.stacks[0].wait()
	if s == nil {
		return n.stacks[0].err
	}
	for {
		try, cancel := context.WithTimeout(ctx, tryPort)
		c, err := s.DialContext(try, "tcp", net.JoinHostPort("guest", strconv.Itoa(int(port))))
		cancel()
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pausePort): // a guest does not say that it listens now
		}
	}
}

// Ended says how the machine ended, for the audit log, and what its interfaces
// have counted.
func (n *Network) Ended(how string, stats []vmm.NetStats) {
	n.ended = how
	for i, s := range stats {
		n.host.Log.Debug("interface", "number", i, "counters", fmt.Sprintf("%+v", s))
	}
}

// Close ends everything, in the reverse of the order in which it was opened; the
// machine must be closed before. The error tells what was lost.
func (n *Network) Close() error {
	if n.cancel != nil {
		n.cancel()
	}
	n.serving.Wait()
	if n.created {
		n.audit.Emit(audit.Event{Event: audit.MachineEnded, Reason: n.ended})
		n.created = false
	}
	for i, l := range n.stacks {
		if s := l.wait(); s != nil {
			n.host.Log.Debug("network", "number", i, "counters", fmt.Sprintf("%+v", s.Stats()))
		}
	}
	n.stacks = nil
	var errs []error
	for i := len(n.closers) - 1; i >= 0; i-- {
		errs = append(errs, n.closers[i]())
	}
	n.closers = nil
	return errors.Join(errs...)
}
