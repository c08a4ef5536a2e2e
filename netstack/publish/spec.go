// Package publish makes services of a guest reachable from the host: it opens
// ports and Unix sockets of the host and relays what arrives there into the
// guest, through any Dialer that reaches it. It knows no network stack.
//
// Open takes the ports, which is where everything can fail, before there is a
// guest; Serve relays, while it runs; Close leaves nothing behind.
package publish

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode"
)

// Spec is one publication: an address of the host and a port of the guest.
type Spec struct {
	// Network is "tcp", "udp" or "unix": what the host's side is. A Unix
	// socket leads to a TCP port of the guest.
	Network string
	// Host is the host's address. The zero value stands for the loopback
	// addresses of both families, 127.0.0.1 and ::1. 0.0.0.0 is every IPv4
	// address of the host, and :: every IPv6 address and nothing else.
	Host netip.Addr
	// HostPort is the host's port; 0 picks a free one.
	HostPort uint16
	// Path is the Unix socket's.
	Path string
	// Guest is the guest's address; the zero value is whichever it has.
	Guest netip.Addr
	// GuestPort is the guest's port, never 0.
	GuestPort uint16
}

// maxPath is the longest path of a Unix socket in bytes: sun_path has 108, with
// a zero at the end (unix(7)).
const maxPath = 107

// maxSpec bounds what Parse looks at, in bytes: the longest path and its ports,
// and the longest addresses, are shorter.
const maxSpec = 256

var (
	errForms  = errors.New("want hostport:guestport[/udp], address:hostport:guestport, tcp:[address]:hostport-[address]:guestport or unix:path:guestport")
	errRanges = errors.New("ranges of ports are not supported: publish each port")
)

// Parse reads one publication:
//
//	80                    a free port of the loopback to the guest's 80
//	8080:80  8080:80/udp  as Docker has it
//	127.0.0.1:8080:80     one address of the host; [::1]:8080:80 with brackets
//	127.0.0.1::80         a free port of that address
//	tcp::8080-:80         as smolBSD and QEMU have it: [tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport
//	unix:/run/ssh.sock:22 a Unix socket to the guest's TCP port 22
//
// Without an address it is the loopback of both families; only 0.0.0.0 and [::]
// open a port to other hosts. "localhost" is the loopback too.
func Parse(s string) (Spec, error) {
	if len(s) > maxSpec {
		return Spec{}, fmt.Errorf("publish: %.32q… has %d bytes, at most %d", s, len(s), maxSpec)
	}
	spec, err := parse(s)
	if err != nil {
		return Spec{}, fmt.Errorf("publish %q: %w", s, err)
	}
	return spec, nil
}

func parse(s string) (Spec, error) {
	if rest, ok := strings.CutPrefix(s, "unix:"); ok {
		return parseUnix(rest)
	}
	if host, guest, ok := strings.Cut(s, "-"); ok {
		return parsePair(host, guest)
	}
	return parseShort(s)
}

func parseUnix(s string) (Spec, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return Spec{}, errors.New("want unix:path:guestport")
	}
	port, err := parsePort(s[i+1:], "guest's")
	if err != nil {
		return Spec{}, err
	}
	spec := Spec{Network: "unix", Path: s[:i], GuestPort: port}
	return spec, spec.check()
}

// parsePair reads [tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport.
func parsePair(host, guest string) (Spec, error) {
	network, rest, ok := strings.Cut(host, ":")
	if !ok || strings.Contains(guest, "-") {
		return Spec{}, errRanges
	}
	switch network {
	case "tcp", "udp":
	case "":
		network = "tcp"
	default:
		if _, err := strconv.Atoi(network); err == nil {
			return Spec{}, errRanges
		}
		return Spec{}, fmt.Errorf("%q is neither tcp nor udp: %w", network, errForms)
	}
	hostAddr, hostPort, err := parseEnd(rest, "host's")
	if err != nil {
		return Spec{}, err
	}
	guestAddr, guestPort, err := parseEnd(guest, "guest's")
	if err != nil {
		return Spec{}, err
	}
	spec := Spec{Network: network, Host: hostAddr, HostPort: hostPort, Guest: guestAddr, GuestPort: guestPort}
	return spec, spec.check()
}

// parseEnd reads [address]:port; the address may be left out, its colon not.
func parseEnd(s, whose string) (netip.Addr, uint16, error) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return netip.Addr{}, 0, fmt.Errorf("%q has no colon before the port: %w", s, errForms)
	}
	addr, err := parseAddr(s[:i])
	if err != nil {
		return netip.Addr{}, 0, err
	}
	port, err := parsePort(s[i+1:], whose)
	return addr, port, err
}

// parseShort reads [[address:]hostport:]guestport[/tcp|/udp].
func parseShort(s string) (Spec, error) {
	spec := Spec{Network: "tcp"}
	if rest, network, ok := strings.Cut(s, "/"); ok {
		if network != "tcp" && network != "udp" {
			return Spec{}, fmt.Errorf("%q is neither tcp nor udp", network)
		}
		s, spec.Network = rest, network
	}
	rest, guest := "", s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		rest, guest = s[:i], s[i+1:]
		i = strings.LastIndexByte(rest, ':')
		// A bracket behind the colon means that the colon is the address's.
		if i >= 0 && strings.IndexByte(rest[i:], ']') < 0 {
			addr, err := parseAddr(rest[:i])
			if err != nil {
				return Spec{}, err
			}
			spec.Host, rest = addr, rest[i+1:]
		} else if rest == "" || i >= 0 {
			return Spec{}, errForms
		}
		if rest != "" {
			port, err := parsePort(rest, "host's")
			if err != nil {
				return Spec{}, err
			}
			spec.HostPort = port
		}
	}
	port, err := parsePort(guest, "guest's")
	if err != nil {
		return Spec{}, err
	}
	spec.GuestPort = port
	return spec, spec.check()
}

// parseAddr reads an IPv4 address, or an IPv6 one in brackets; "" and localhost
// are the zero one.
func parseAddr(s string) (netip.Addr, error) {
	if s == "" || s == "localhost" {
		return netip.Addr{}, nil
	}
	in, bracket := strings.CutPrefix(s, "[")
	if bracket {
		if in, bracket = strings.CutSuffix(in, "]"); !bracket {
			return netip.Addr{}, fmt.Errorf("%q has no closing bracket", s)
		}
	}
	a, err := netip.ParseAddr(in)
	switch {
	case err != nil:
		return netip.Addr{}, fmt.Errorf("%q is no IP address: %w", in, errForms)
	case a.Is4() == bracket:
		return netip.Addr{}, fmt.Errorf("%q: brackets belong around IPv6 addresses, and only those", s)
	}
	return a, nil
}

func parsePort(s, whose string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || s[0] == '+' {
		return 0, fmt.Errorf("the %s port %q is no number of 0 to 65535", whose, s)
	}
	return uint16(n), nil
}

// check holds the rules of a Spec, however it was made.
func (s Spec) check() error {
	switch {
	case s.GuestPort == 0:
		return errors.New("the guest's port is never 0")
	case s.Host.Zone() != "" || s.Guest.Zone() != "":
		return errors.New("addresses with a zone are not supported")
	case s.Guest.IsValid() && (s.Guest.IsUnspecified() || s.Guest.IsMulticast()):
		return fmt.Errorf("%v is not the address of one guest", s.Guest)
	case s.Host.IsMulticast():
		return fmt.Errorf("%v is a group's address: want one of the host", s.Host)
	case s.Host.Is4In6() || s.Guest.Is4In6():
		return errors.New("an IPv4 address within IPv6 is written as IPv4")
	}
	switch s.Network {
	case "tcp", "udp":
		if s.Path != "" {
			return fmt.Errorf("a %s port has no path", s.Network)
		}
		return nil
	case "unix":
		return s.checkPath()
	}
	return fmt.Errorf("network %q: want tcp, udp or unix", s.Network)
}

func (s Spec) checkPath() error {
	switch {
	case s.Path == "":
		return errors.New("the Unix socket needs a path: unix:path:guestport")
	case len(s.Path) > maxPath:
		return fmt.Errorf("the path has %d bytes, a Unix socket's at most %d: use a shorter one", len(s.Path), maxPath)
	case strings.ContainsFunc(s.Path, unicode.IsControl):
		return errors.New("the path has control characters")
	case s.Path[0] == '@':
		return errors.New("abstract sockets have no permissions, so anyone may connect: give the path of a file")
	case s.Host.IsValid() || s.HostPort != 0 || s.Guest.IsValid():
		return errors.New("a Unix socket has no address and no port on the host's side")
	}
	return nil
}

// String gives the publication in a form that Parse reads: smolBSD's, which can
// say everything, or unix:path:port.
func (s Spec) String() string {
	if s.Network == "unix" {
		return fmt.Sprintf("unix:%s:%d", s.Path, s.GuestPort)
	}
	return fmt.Sprintf("%s:%s:%d-%s:%d", s.Network, addrString(s.Host), s.HostPort, addrString(s.Guest), s.GuestPort)
}

func addrString(a netip.Addr) string {
	switch {
	case !a.IsValid():
		return ""
	case a.Is4():
		return a.String()
	}
	return "[" + a.String() + "]"
}

// target is what a Dialer is asked for: the network and the address.
func (s Spec) target() (network, address string) {
	host, network := "guest", "tcp"
	if s.Guest.IsValid() {
		host = addrString(s.Guest)
	}
	if s.Network == "udp" {
		network = "udp"
	}
	return network, host + ":" + strconv.Itoa(int(s.GuestPort))
}
