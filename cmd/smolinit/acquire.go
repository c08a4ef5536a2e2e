package main

import (
	"errors"
	"fmt"
	"time"
)

// link is an interface that frames go through.
type link interface {
	// send puts a frame on it.
	send(frame []byte) error
	// receive gives frames that have come, or none at the deadline.
	receive(deadline time.Time) ([][]byte, error)
}

// client asks a link for an interface's addresses.
type client struct {
	link     link
	mac      mac
	xid      uint32
	hostname string
	dhcp     bool
	slaac    bool
	// leased is called once where there is DHCP, with what a server gave or
	// why none did; routed, at most once, where there is SLAAC.
	leased func(setup, error)
	routed func(advert)

	offer    dhcpReply // asked for, while its kind is not zero
	requests int       // times that it was
	ignored  error     // the last thing that was wrong with an answer
}

// Times between one message and the next, doubled each time: RFC 2131 §4.1 has
// four seconds for the first, which is for a shared wire; here the server is
// the monitor. A frame can be lost while the driver starts.
const (
	firstAsk     = 200 * time.Millisecond
	firstSolicit = 500 * time.Millisecond
	maxRequests  = 2 // times that an offer is asked for before another is sought
)

// run works until all that was asked for is there or its time has run out:
// netWait for DHCP, raListen for SLAAC.
func (c *client) run() {
	start := time.Now()
	ask, solicit := start, start
	askAgain, solicitAgain := firstAsk, firstSolicit
	for {
		now := time.Now()
		if c.dhcp && now.Sub(start) >= netWait {
			c.giveUp(fmt.Errorf("no DHCP server answered within %v", netWait))
		}
		if now.Sub(start) >= raListen {
			c.slaac = false
		}
		if !c.dhcp && !c.slaac {
			return
		}
		until := start.Add(raListen)
		if c.dhcp {
			if !now.Before(ask) {
				if err := c.ask(uint16(now.Sub(start) / time.Second)); err != nil {
					c.giveUp(fmt.Errorf("sending to the DHCP servers: %w", err))
					continue
				}
				ask = now.Add(askAgain)
				askAgain *= 2
			}
			until = earliest(ask, start.Add(netWait))
		}
		if c.slaac {
			if !now.Before(solicit) {
				if err := c.link.send(routerSolicitation(c.mac)); err != nil {
					c.slaac = false
					continue
				}
				solicit = now.Add(solicitAgain)
				solicitAgain *= 2
			}
			until = earliest(until, earliest(solicit, start.Add(raListen)))
		}
		frames, err := c.link.receive(until)
		if err != nil {
			c.slaac = false
			if c.dhcp {
				c.giveUp(err)
			}
			continue
		}
		for _, f := range frames {
			if c.frame(f) { // an offer is taken up at once
				ask = time.Now()
			}
		}
	}
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (c *client) giveUp(err error) {
	c.dhcp = false
	if c.ignored != nil {
		err = fmt.Errorf("%w (%w)", err, c.ignored)
	}
	c.leased(setup{}, err)
}

// ask sends what is due: a search for servers, or the request for an offer.
func (c *client) ask(secs uint16) error {
	a := dhcpAsk{kind: dhcpDiscover, xid: c.xid, from: c.mac, secs: secs, hostname: c.hostname}
	if c.offer.kind != 0 && c.requests == maxRequests {
		c.offer = dhcpReply{}
	}
	if c.offer.kind != 0 {
		c.requests++
		a.kind, a.requested, a.server = dhcpRequest, c.offer.Address.Addr(), c.offer.server
	}
	return c.link.send(a.frame())
}

// frame takes what has come, and tells whether something is to be sent at once.
func (c *client) frame(f []byte) (now bool) {
	if c.slaac {
		if a, err := parseRA(f); err == nil {
			c.slaac = false
			c.routed(a)
			return false
		}
	}
	if !c.dhcp {
		return false
	}
	p, err := dhcpPayload(f)
	var r dhcpReply
	if err == nil {
		r, err = parseDHCP(p, c.xid, c.mac)
	}
	switch {
	case errors.Is(err, errNotOurs):
	case err != nil:
		c.ignored = err
	case r.kind == dhcpOffer && c.offer.kind == 0 && r.server.IsValid():
		c.offer, c.requests = r, 0
		return true
	case r.kind == dhcpAck && c.offer.kind != 0 && r.server == c.offer.server:
		c.dhcp = false
		c.leased(r.setup, nil)
	case r.kind == dhcpNak && c.offer.kind != 0 && r.server == c.offer.server:
		// The next search is when it is due: a server that always refuses
		// is not asked without a pause.
		c.offer = dhcpReply{}
	}
	return false
}
