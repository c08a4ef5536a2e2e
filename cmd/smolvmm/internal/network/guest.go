package network

import (
	"context"
	"errors"
	"net"
	"strconv"
)

// errNoNetwork: there is nothing to reach the guest over.
var errNoNetwork = errors.New("the machine has no network to reach the guest over")

// DialGuest connects to a TCP port of the guest's: over the host-only link where
// there is one, else over the first interface. It is tried once.
func (n *Network) DialGuest(ctx context.Context, port uint16) (net.Conn, error) {
	if len(n.stacks) == 0 {
		return nil, errNoNetwork
	}
	l := n.stacks[0]
	for i, iface := range n.plan.Interfaces {
		if iface.HostOnly {
			l = n.stacks[i]
		}
	}
	s := l.wait()
	if s == nil {
		return nil, l.err
	}
	return s.DialContext(ctx, "tcp", net.JoinHostPort("guest", strconv.Itoa(int(port))))
}
