// Package network joins what a machine's network is made of: it reads the
// command's flags, opens ports and files, makes a netstack for each interface,
// and gives the interfaces as package vmm wants them.
package network

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
)

// Flags are the flags of the network, as typed.
type Flags struct {
	Nets       []string // -net; none is one interface "user"
	HostLink   bool     // -host-link
	Name       string   // -name
	MAC        string   // -mac
	MTU        string   // -mtu, bytes
	Rate       string   // -rate
	Publish    []string // -p
	Services   []string // -host-service
	Egress     []string // -egress
	EgressFile string   // -egress-file
	Names      []string // -dns
	Search     string   // -search
	Capture    string   // -pcap
	Audit      string   // -audit
}

// MaxMTU is the largest of a VirtIO device's MTU that fits an IPv4 packet with
// room to spare, as the guest contract has it; MinMTU is IPv6's least (RFC 8200
// §5). In bytes.
const (
	MinMTU = 1280
	MaxMTU = 65520
)

// maxQueuePairs is how many pairs of queues -net may ask for: one for each of
// the most CPUs that a machine has use for.
const maxQueuePairs = 8

// MAC is a station's address.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Rate bounds an interface, each way by itself; 0 is no bound.
type Rate struct {
	Bytes   uint64 // a second
	Packets uint64 // a second
	// Burst is for how long a silent interface saves its rate up; 0 is the
	// device's own choice.
	Burst time.Duration
}

// Interface is one -net, parsed.
type Interface struct {
	HostOnly bool
	Subnet   netip.Prefix // zero: the default of its number
	MAC      MAC          // zero: from the machine's name, or random
	MTU      int          // bytes; 0 is the stack's default
	Queues   int          // pairs; 0 is one
	Rate     Rate
	Limits   *vmm.NetLimits // instead of Rate, which is the same both ways; nil: Rate counts
	Capture  string         // file; "" is none
}

// limits are those of the device.
func (i Interface) limits() vmm.NetLimits {
	if i.Limits != nil {
		return *i.Limits
	}
	l := vmm.NetLimit{BytesPerSecond: i.Rate.Bytes, PacketsPerSecond: i.Rate.Packets, Burst: i.Rate.Burst}
	return vmm.NetLimits{TX: l, RX: l}
}

// netForms tell what the value of -net may be.
const netForms = "none, or user[,subnet=10.0.2.0/24][,mac=ADDR][,mtu=N][,rate=SIZE][,pps=N][,burst=TIME][,queues=N][,pcap=FILE]"

// parse gives the interfaces that the flags ask for, in the order in which the
// guest sees them: those of -net, then the host link.
func (f Flags) parse() ([]Interface, error) {
	var out []Interface
	nets := f.Nets
	if len(nets) == 0 {
		nets = []string{"user"}
	}
	for _, s := range nets {
		i, ok, err := parseNet(s)
		switch {
		case err != nil:
			return nil, err
		case ok:
			out = append(out, i)
		case len(nets) > 1:
			return nil, errors.New("-net none: leave the other -net out, or the none")
		}
	}
	users := len(out)
	if f.HostLink {
		out = append(out, Interface{HostOnly: true})
	}
	if err := f.spread(out, users); err != nil {
		return nil, err
	}
	return out, distinct(out)
}

// spread gives interfaces what flags of their own say: -mtu and -rate are for
// every -net that does not say otherwise, -mac and -pcap for the first one.
func (f Flags) spread(out []Interface, users int) error {
	if users == 0 {
		for _, flag := range []struct {
			name string
			set  bool
		}{
			{"-mac", f.MAC != ""}, {"-mtu", f.MTU != ""}, {"-rate", f.Rate != ""}, {"-pcap", f.Capture != ""},
			{"-egress", len(f.Egress) > 0}, {"-egress-file", f.EgressFile != ""}, {"-host-service", len(f.Services) > 0},
			{"-dns", len(f.Names) > 0}, {"-search", f.Search != ""},
		} {
			if flag.set {
				return fmt.Errorf("%s: there is no network it could be for: -net none leaves none", flag.name)
			}
		}
		if len(f.Publish) > 0 && !f.HostLink {
			return errors.New("-p: a machine with -net none has nothing to publish: give it -host-link as well")
		}
		return nil
	}
	rate, err := parseRate(f.Rate)
	if err != nil {
		return fmt.Errorf("-rate %q: %w", f.Rate, err)
	}
	mtu := 0
	if f.MTU != "" {
		if mtu, err = checkMTU(f.MTU); err != nil {
			return fmt.Errorf("-mtu %q: %w", f.MTU, err)
		}
	}
	for n := range out[:users] {
		i := &out[n]
		if i.MTU == 0 {
			i.MTU = mtu
		}
		if i.Rate == (Rate{}) {
			i.Rate = rate
		}
	}
	first := &out[0]
	if f.MAC != "" {
		if first.MAC != (MAC{}) {
			return errors.New("-mac: the first -net has a mac= already")
		}
		if first.MAC, err = parseMAC(f.MAC); err != nil {
			return fmt.Errorf("-mac %q: %w", f.MAC, err)
		}
	}
	if f.Capture != "" {
		if first.Capture != "" {
			return errors.New("-pcap: the first -net has a pcap= already")
		}
		first.Capture = f.Capture
	}
	return nil
}

// parseNet reads one -net; ok is false for "none".
func parseNet(s string) (i Interface, ok bool, err error) {
	parts := splitCommas(s)
	switch {
	case s == "none":
		return i, false, nil
	case parts[0] != "user":
		return i, false, fmt.Errorf("-net %q: must be %s", s, netForms)
	}
	for _, o := range parts[1:] {
		key, value, has := strings.Cut(o, "=")
		if !has || value == "" {
			return i, false, fmt.Errorf("-net %q: %q is no option: must be %s", s, o, netForms)
		}
		if err := i.option(key, value); err != nil {
			return i, false, fmt.Errorf("-net %q: %s: %w", s, o, err)
		}
	}
	return i, true, i.Rate.check()
}

func (i *Interface) option(key, value string) (err error) {
	switch key {
	case "subnet":
		i.Subnet, err = parseSubnet(value)
	case "mac":
		i.MAC, err = parseMAC(value)
	case "mtu":
		i.MTU, err = checkMTU(value)
	case "queues":
		i.Queues, err = strconv.Atoi(value)
		if err != nil || i.Queues < 1 || i.Queues > maxQueuePairs {
			err = fmt.Errorf("must be a number from 1 to %d", maxQueuePairs)
		}
	case "pcap":
		i.Capture = value
	default:
		err = i.Rate.option(key, value)
	}
	return err
}

// parseSubnet reads an IPv4 network with room for gateway, DNS and guest: the
// second, third and fifteenth addresses of it.
func parseSubnet(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil || !p.Addr().Is4():
		return p, errors.New("must be an IPv4 network like 10.0.2.0/24")
	case p != p.Masked():
		return p, fmt.Errorf("has bits of a host: did you mean %v?", p.Masked())
	case p.Bits() < 8 || p.Bits() > 27:
		return p, errors.New("must be between /8 and /27")
	case p.Addr().IsMulticast(), p.Addr().IsLoopback(), p.Addr().As4()[0] == 0, p.Addr().As4()[0] >= 240:
		return p, errors.New("no machine can have an address there")
	}
	return p, nil
}

// parseMAC reads six bytes in hexadecimal, with colons or dashes between.
func parseMAC(s string) (m MAC, err error) {
	bad := errors.New("must be a MAC address like 02:00:5e:10:00:01")
	parts := strings.Split(strings.ReplaceAll(s, "-", ":"), ":")
	if len(parts) != len(m) {
		return m, bad
	}
	for n, p := range parts {
		v, err := strconv.ParseUint(p, 16, 8)
		if err != nil || len(p) != 2 {
			return MAC{}, bad
		}
		m[n] = byte(v)
	}
	switch {
	case m == MAC{}:
		return m, errors.New("is no one's address")
	case m[0]&1 != 0:
		return MAC{}, errors.New("is a group's address, not a station's: the first byte must be even")
	}
	return m, nil
}

func checkMTU(s string) (int, error) {
	v, err := strconv.Atoi(s)
	if err != nil || v < MinMTU || v > MaxMTU {
		return 0, fmt.Errorf("must be a number of bytes from %d to %d", MinMTU, MaxMTU)
	}
	return v, nil
}

// parseRate reads SIZE[,pps=N][,burst=TIME], or either of the latter alone.
func parseRate(s string) (r Rate, err error) {
	if s == "" {
		return r, nil
	}
	for n, o := range splitCommas(s) {
		key, value, has := strings.Cut(o, "=")
		if n == 0 && !has {
			key, value = "rate", o
		}
		if err := r.option(key, value); err != nil {
			return r, fmt.Errorf("%w: give SIZE[,pps=N][,burst=TIME], as in 10M,pps=20000,burst=100ms", err)
		}
	}
	return r, r.check()
}

func (r *Rate) option(key, value string) (err error) {
	switch key {
	case "rate":
		r.Bytes, err = parseBytes(value)
	case "pps":
		r.Packets, err = strconv.ParseUint(value, 10, 32)
		if err != nil || r.Packets == 0 {
			err = errors.New("pps must be a number of packets a second, at least 1")
		}
	case "burst":
		r.Burst, err = time.ParseDuration(value)
		if err != nil || r.Burst <= 0 || r.Burst > maxBurst {
			err = fmt.Errorf("burst must be a length of time up to %v, as in 100ms", maxBurst)
		}
	default:
		err = errors.New("there is no such option")
	}
	return err
}

// maxBurst bounds what may go at once: a rate that is saved up for longer is none.
const maxBurst = time.Minute

func (r Rate) check() error {
	if r.Burst != 0 && r.Bytes == 0 && r.Packets == 0 {
		return errors.New("burst needs a rate= or pps=")
	}
	return nil
}

// parseBytes reads a number of bytes: 4000, 64K, 10M, 1G (1024s).
func parseBytes(s string) (uint64, error) {
	shift, digits := 0, s
	if n := len(s); n > 0 {
		if at := strings.IndexByte("KMG", s[n-1]&^0x20); at >= 0 && s[n-1] >= 'A' {
			shift, digits = 10*(at+1), s[:n-1]
		}
	}
	v, err := strconv.ParseUint(digits, 10, 63)
	if err != nil || v == 0 || v<<shift>>shift != v || v<<shift > 1<<50 {
		return 0, fmt.Errorf("%q must be a number of bytes like 4000, 64K, 10M or 1G", s)
	}
	return v << shift, nil
}

// splitCommas splits at single commas; two stand for one, in a file's name.
func splitCommas(s string) []string {
	parts := strings.Split(strings.ReplaceAll(s, ",,", "\x00"), ",")
	for i := range parts {
		parts[i] = strings.ReplaceAll(parts[i], "\x00", ",")
	}
	return parts
}
