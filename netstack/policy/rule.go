package policy

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

const (
	// maxRules bounds what Decide goes through for each connection: thousands of
	// rules still take less than the system calls of opening one.
	maxRules = 4096
	// maxLine bounds a line of a rules file, in bytes: a name (255) and a long list of ports fit.
	maxLine = 4096
	// maxPorts bounds the list of one rule.
	maxPorts = 64
)

// protocols is a set of them.
type protocols uint8

const (
	tcp protocols = 1 << iota
	udp
	icmp
	everyProtocol = tcp | udp | icmp
)

// protocol gives the set with the one named, or none for any other name.
func protocol(name string) protocols {
	switch name {
	case "tcp":
		return tcp
	case "udp":
		return udp
	case "icmp":
		return icmp
	}
	return 0
}

type kind uint8

const (
	isDefault kind = iota // deny-all, allow-all
	isAll
	isAddress
	isName
	isMetadata
	isPrivate
)

type portRange struct{ first, last uint16 }

// Rule is one rule, made by ParseRule. It is a value and does not change.
type Rule struct {
	allow     bool
	kind      kind
	protocols protocols
	explicit  bool // the protocol was written
	prefixes  []netip.Prefix
	name      string // lower case, without the last dot; what is below it if wildcard
	wildcard  bool
	ports     []portRange
	text      string
	origin    string // file and line, or ""
}

// String gives the rule as it was written.
func (r Rule) String() string {
	if r.origin != "" {
		return r.text + " (" + r.origin + ")"
	}
	return r.text
}

// ParseRule reads one rule. The error quotes it and says what is wrong.
func ParseRule(s string) (Rule, error) {
	if len(s) > maxLine {
		return Rule{}, fmt.Errorf("egress rule %.40q…: longer than %d bytes", s, maxLine)
	}
	r, err := parseRule(strings.Fields(s))
	if err != nil {
		return Rule{}, fmt.Errorf("egress rule %q: %w", strings.TrimSpace(s), err)
	}
	r.text = strings.Join(strings.Fields(s), " ")
	return r, nil
}

func parseRule(words []string) (Rule, error) {
	if len(words) == 0 {
		return Rule{}, errors.New("it is empty: write allow or deny and what")
	}
	var r Rule
	switch first := strings.ToLower(words[0]); first {
	case "allow-all", "deny-all":
		if len(words) > 1 {
			return Rule{}, fmt.Errorf("%s stands alone", first)
		}
		return Rule{allow: first == "allow-all"}, nil
	case "allow", "deny":
		r.allow = first == "allow"
	default:
		return Rule{}, fmt.Errorf("%q: a rule begins with allow, deny, allow-all or deny-all", words[0])
	}
	words = words[1:]
	r.protocols = everyProtocol
	if len(words) > 0 {
		if p := protocol(strings.ToLower(words[0])); p != 0 {
			r.protocols, r.explicit = p, true
			words = words[1:]
		}
	}
	target := "all"
	switch {
	case len(words) == 1:
		target = words[0]
	case len(words) > 1:
		return Rule{}, fmt.Errorf("%q is too much: allow or deny, a protocol (tcp, udp or icmp) if wanted, and one target with its ports", words[1])
	case !r.explicit:
		return Rule{}, errors.New("what? A target is missing: an address, a prefix, a name, all, metadata or private")
	}
	host, ports, err := splitPorts(target)
	if err != nil {
		return Rule{}, err
	}
	if ports != "" {
		if r.protocols == icmp {
			return Rule{}, errors.New("icmp has no ports")
		}
		r.protocols &^= icmp
		if r.ports, err = parsePorts(ports); err != nil {
			return Rule{}, err
		}
	}
	if err := r.parseHost(strings.ToLower(host)); err != nil {
		return Rule{}, err
	}
	if r.kind == isAll && ports == "" && !r.explicit {
		r.kind = isDefault
	}
	return r, nil
}

// splitPorts parts a target into host and ports; no ports are "".
func splitPorts(s string) (host, ports string, err error) {
	var rest string
	switch colons := strings.Count(s, ":"); {
	case strings.HasPrefix(s, "["):
		inner, after, ok := strings.Cut(s[1:], "]")
		if !ok {
			return "", "", errors.New("a closing bracket is missing")
		}
		length, rest, colon := strings.Cut(after, ":")
		if length != "" && length[0] != '/' || colon && rest == "" {
			return "", "", fmt.Errorf("%q cannot follow the bracket: write [ADDRESS]:PORTS", after)
		}
		if !strings.Contains(inner, ":") {
			return "", "", fmt.Errorf("brackets are for IPv6 addresses: write %s", inner+after)
		}
		return inner + length, rest, nil
	case colons == 0:
		return s, "", nil
	case colons > 1:
		return s, "", nil // IPv6, or an error for who reads the host
	}
	host, rest, _ = strings.Cut(s, ":")
	if rest == "" {
		return "", "", errors.New("ports are missing after the colon")
	}
	if strings.HasPrefix(rest, "//") {
		return "", "", errors.New("a name is written without path and scheme, as api.example.com:443")
	}
	if host == "" {
		host = "all"
	}
	return host, rest, nil
}

func parsePorts(s string) ([]portRange, error) {
	items := strings.Split(s, ",")
	if len(items) > maxPorts {
		return nil, fmt.Errorf("more than %d ports: write ranges or more rules", maxPorts)
	}
	var out []portRange
	for _, item := range items {
		first, last, isRange := strings.Cut(item, "-")
		a, err := parsePort(first)
		if err != nil {
			return nil, err
		}
		b := a
		if isRange {
			if b, err = parsePort(last); err != nil {
				return nil, err
			}
			if b < a {
				return nil, fmt.Errorf("port range %q runs backwards", item)
			}
		}
		out = append(out, portRange{a, b})
	}
	return out, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 || s[0] == '+' {
		return 0, fmt.Errorf("%q is no port: 1 to 65535, as in 443, 80,443 or 8000-8080", s)
	}
	return uint16(n), nil
}

func (r *Rule) parseHost(host string) error {
	switch host {
	case "all", "any", "*":
		r.kind = isAll
		return nil
	case "metadata":
		r.kind, r.prefixes = isMetadata, metadataPrefixes()
		return nil
	case "private":
		r.kind, r.prefixes = isPrivate, privatePrefixes()
		return nil
	}
	if p, err := parsePrefix(host); p.IsValid() || err != nil {
		r.kind, r.prefixes = isAddress, []netip.Prefix{p}
		return err
	}
	name, wildcard := strings.CutPrefix(host, "*.")
	if err := checkName(name, wildcard); err != nil {
		return err
	}
	r.kind, r.name, r.wildcard = isName, strings.TrimSuffix(name, "."), wildcard
	return nil
}

// parsePrefix reads an address or prefix. Neither result is for what is no address at all.
func parsePrefix(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		if a.Zone() != "" {
			return netip.Prefix{}, errors.New("an address with a zone cannot be matched: leave the zone out")
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	before, length, ok := strings.Cut(s, "/")
	if !ok {
		if strings.Contains(s, ":") {
			return netip.Prefix{}, fmt.Errorf("%q is no address: IPv6 with ports is written [ADDRESS]:PORTS", s)
		}
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if strings.Contains(length, ":") {
			return netip.Prefix{}, errors.New("an IPv6 prefix with ports is written [PREFIX]:PORTS")
		}
		if checkName(before, true) == nil {
			return netip.Prefix{}, fmt.Errorf("%q is no prefix: a name is written without path and scheme", s)
		}
		return netip.Prefix{}, fmt.Errorf("%q is no prefix: write ADDRESS/LENGTH, as in 192.0.2.0/24", s)
	}
	if m := p.Masked(); m != p {
		return netip.Prefix{}, fmt.Errorf("%q has bits set behind its length: %v or %v?", s, m, p.Addr())
	}
	if p.Addr().Is4In6() {
		if p.Bits() < 96 {
			return netip.Prefix{}, fmt.Errorf("%q is half IPv4: write the IPv4 prefix", s)
		}
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, nil
}

// maxName is the length of a name in text, without the last dot (RFC 1035 §3.1:
// 255 bytes with a length before each label and the root's).
const maxName = 253

// checkName takes host names (RFC 1123 §2.1) and underscores, which DNS names
// have. short: a single label will do, since it cannot be a mistyped word.
func checkName(s string, short bool) error {
	name, rooted := strings.CutSuffix(s, ".")
	labels := strings.Split(name, ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 {
			return fmt.Errorf("%q is no address, no word and no name", s)
		}
		for i := range len(l) {
			switch c := l[i]; {
			case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '_', c == '-' && i > 0 && i < len(l)-1:
			case c == '*':
				return fmt.Errorf("%q: a star stands for whole labels and only in front: *.example.com", s)
			case c >= 0x80:
				return fmt.Errorf("%q: write the name as DNS has it (xn--…)", s)
			default:
				return fmt.Errorf("%q is no address, no word and no name", s)
			}
		}
	}
	if len(name) > maxName {
		return fmt.Errorf("%.40q… is longer than a name can be", s)
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" {
		return fmt.Errorf("%q is no address, and no name ends in a number", s)
	}
	if len(labels) == 1 && !rooted && !short {
		return fmt.Errorf("%q is none of all, metadata and private; for a host's name of one label write %q", s, s+".")
	}
	return nil
}

// ParseRules reads a rules file: a rule a line, "#" begins a comment. Errors begin
// with the file's name, as given, and the line.
func ParseRules(r io.Reader, name string) ([]Rule, error) {
	var rules []Rule
	in := bufio.NewScanner(r)
	in.Buffer(nil, maxLine)
	line := 0
	for in.Scan() {
		line++
		text, _, _ := strings.Cut(in.Text(), "#")
		if strings.TrimSpace(text) == "" {
			continue
		}
		rule, err := ParseRule(text)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, line, err)
		}
		if len(rules) == maxRules {
			return nil, fmt.Errorf("%s:%d: more than %d rules", name, line, maxRules)
		}
		rule.origin = fmt.Sprintf("%s:%d", name, line)
		rules = append(rules, rule)
	}
	if err := in.Err(); errors.Is(err, bufio.ErrTooLong) {
		return nil, fmt.Errorf("%s:%d: a line has at most %d bytes", name, line+1, maxLine)
	} else if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return rules, nil
}

// Parse reads a rules file and makes a policy of it.
func Parse(r io.Reader, name string) (*Policy, error) {
	rules, err := ParseRules(r, name)
	if err != nil {
		return nil, err
	}
	return New(rules...)
}
