package network

import (
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/smolvmm/smolvmm/netstack"
)

// stableMAC derives an interface's address from its machine's name, so that a
// guest that is started again is the station it was: the first bytes of a hash
// with the bit of locally administered addresses set and that of groups cleared
// (IEEE 802 §8.4).
func stableMAC(name string, number int) MAC {
	sum := sha256.Sum256(fmt.Appendf(nil, "smolvmm interface %d of %s", number, name))
	return local(MAC(sum[:6]))
}

// randomMAC is one that no other machine has, as likely as not needed.
func randomMAC() MAC {
	var m MAC
	_, _ = rand.Read(m[:]) // it never fails: package rand
	return local(m)
}

func local(m MAC) MAC {
	m[0] = m[0]&^1 | 2
	return m
}

// The networks that interfaces are given where -net names none: 10.0.2.0/24 for
// the first, as QEMU's user network has it and images hard-code it, 10.0.3.0/24
// for the second and so on; the host link's is beside none of them.
var hostLink = netip.MustParsePrefix("10.0.255.0/24")

func subnetOf(number int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(2 + number), 0}), 24)
}

// subnet6 is the IPv6 network that belongs to an IPv4 one: a unique local /64
// (RFC 4193) with its address in it, so that no two interfaces share one.
func subnet6(p netip.Prefix) netip.Prefix {
	a := p.Addr().As4()
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 0x53, 0x6d, 0x6f, a[0], a[1], a[2], a[3]}), 64)
}

// distinct fills in networks, and refuses those that overlap and addresses that
// two interfaces share: a guest could not tell them apart.
func distinct(out []Interface) error {
	for n := range out {
		if i := &out[n]; i.HostOnly {
			i.Subnet = hostLink
		} else if i.Subnet == (netip.Prefix{}) {
			i.Subnet = subnetOf(n)
		}
	}
	for n, a := range out {
		for _, b := range out[:n] {
			if a.Subnet.Overlaps(b.Subnet) {
				return fmt.Errorf("-net: the networks %v and %v overlap: give each interface a subnet= of its own", b.Subnet, a.Subnet)
			}
			if a.MAC == b.MAC && a.MAC != (MAC{}) {
				return fmt.Errorf("-net: two interfaces have the address %v", a.MAC)
			}
			if a.Capture == b.Capture && a.Capture != "" {
				return fmt.Errorf("-net: two interfaces are captured into %s: give each a file of its own", a.Capture)
			}
		}
	}
	return nil
}

// name gives every interface its MAC address; without a name they are random.
func (f Flags) addresses(out []Interface) error {
	for n := range out {
		switch i := &out[n]; {
		case i.MAC != MAC{}:
		case f.Name != "":
			i.MAC = stableMAC(f.Name, n)
		default:
			i.MAC = randomMAC()
		}
	}
	return distinct(out)
}

// maxName bounds a machine's name, in bytes: a label of DNS (RFC 1035 §2.3.4),
// as it is the guest's host name as well.
const maxName = 63

// CheckName refuses a machine's name that could not be its host name.
func CheckName(s string) error {
	if s == "" || len(s) > maxName || strings.Trim(s, lowerDigits+"-") != "" || s[0] == '-' || s[len(s)-1] == '-' {
		return fmt.Errorf("-name %q: must be 1 to %d lower-case letters, digits and dashes, beginning and ending with none of the latter", s, maxName)
	}
	return nil
}

const lowerDigits = "abcdefghijklmnopqrstuvwxyz0123456789"

// names reads -dns NAME=ADDR; a name may have several addresses.
func (f Flags) names() (map[string][]netip.Addr, error) {
	if len(f.Names) == 0 {
		return nil, nil
	}
	out := map[string][]netip.Addr{}
	for _, s := range f.Names {
		name, value, has := strings.Cut(s, "=")
		addr, err := netip.ParseAddr(value)
		if !has || err != nil || addr.Zone() != "" {
			return nil, fmt.Errorf("-dns %q: must be NAME=ADDRESS, as in db.internal=10.1.2.3", s)
		}
		if err := checkDomain(name); err != nil {
			return nil, fmt.Errorf("-dns %q: %w", s, err)
		}
		name = strings.ToLower(strings.TrimSuffix(name, "."))
		out[name] = append(out[name], addr)
	}
	return out, nil
}

// checkDomain refuses what is no name of DNS (RFC 1035 §2.3.4; underscores are
// in use).
func checkDomain(s string) error {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if s == "" || len(s) > 253 {
		return errors.New("a name has 1 to 253 characters")
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, lowerDigits+"-_") != "" {
			return fmt.Errorf("%q is no name", s)
		}
	}
	return nil
}

// services reads -host-service PORT.
func (f Flags) services() (ports []uint16, err error) {
	for _, s := range f.Services {
		v, err := strconv.ParseUint(s, 10, 16)
		if err != nil || v == 0 {
			return nil, fmt.Errorf("-host-service %q: must be a port of this host, 1 to 65535", s)
		}
		ports = append(ports, uint16(v))
	}
	return ports, nil
}

// subnet6 is the interface's IPv6 network: netstack's own for the customary IPv4
// one, else one that belongs to it.
func (i Interface) subnet6() netip.Prefix {
	if i.Subnet == subnetOf(0) {
		return netip.MustParsePrefix(netstack.DefaultSubnet6)
	}
	return subnet6(i.Subnet)
}

// gateway and gateway6 are where an interface's guest reaches the host: the
// second addresses of its networks, as netstack has them.
func (i Interface) gateway() netip.Addr  { return i.Subnet.Addr().Next().Next() }
func (i Interface) gateway6() netip.Addr { return i.subnet6().Addr().Next().Next() }
