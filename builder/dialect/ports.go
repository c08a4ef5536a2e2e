package dialect

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Port is a port of the guest's and, if Host is not 0, the one of the host that
// leads to it.
type Port struct {
	Guest, Host uint16
	Proto       string // "tcp" or "udp"
}

// String is the form that images hold: "80/tcp".
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Guest, p.Proto) }

// Publish is the form that -publish takes, "8080:80/tcp", or "" where nothing is
// published.
func (p Port) Publish() string {
	if p.Host == 0 {
		return ""
	}
	return fmt.Sprintf("%d:%d/%s", p.Host, p.Guest, p.Proto)
}

// maxRange is how many ports one range may name: more is a mistake.
const maxRange = 1024

// parsePort reads "[HOST:]PORT[-LAST][/tcp|/udp]".
func parsePort(s string) ([]Port, error) {
	ports, proto, ok := strings.Cut(s, "/")
	proto = strings.ToLower(proto)
	if !ok {
		proto = "tcp"
	}
	if proto != "tcp" && proto != "udp" {
		return nil, fmt.Errorf("%q is no protocol that the network has", proto)
	}
	host, guest, ok := strings.Cut(ports, ":")
	if !ok {
		host, guest = "", ports
	}
	g0, g1, err := portRange(guest)
	if err != nil {
		return nil, err
	}
	h0 := uint16(0)
	if ok {
		var h1 uint16
		if h0, h1, err = portRange(host); err != nil {
			return nil, err
		}
		if h1-h0 != g1-g0 {
			return nil, errors.New("the two ranges differ in length")
		}
	}
	var out []Port
	for i := uint16(0); ; i++ {
		p := Port{Guest: g0 + i, Proto: proto}
		if ok {
			p.Host = h0 + i
		}
		out = append(out, p)
		if g0+i == g1 {
			return out, nil
		}
	}
}

func portRange(s string) (first, last uint16, err error) {
	a, b, ok := strings.Cut(s, "-")
	if !ok {
		b = a
	}
	x, err1 := strconv.ParseUint(a, 10, 16)
	y, err2 := strconv.ParseUint(b, 10, 16)
	if err1 != nil || err2 != nil || x == 0 || y < x {
		return 0, 0, fmt.Errorf("%q is no port from 1 to 65535, nor a range of them", s)
	}
	if y-x >= maxRange {
		return 0, 0, fmt.Errorf("more than %d ports", maxRange)
	}
	return uint16(x), uint16(y), nil
}
