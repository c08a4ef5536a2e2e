package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/api"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/network"
	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/agent"
)

// guestAgent is the way to the agent in the guest: a connection over virtio-vsock or
// the network's stack, without any socket of the host, and a greeting that proves
// the key.
type guestAgent struct {
	key  agent.Key
	once sync.Once
	ways []way
	// found is the way on which the agent has answered: it is the one from then on,
	// and the agent's absence is no longer the boot's.
	found atomic.Pointer[way]
}

// way connects to the agent's port in the guest, once.
type way func(ctx context.Context) (net.Conn, error)

// reach says how the guest of a machine that is about to run is reached.
func (g *guestAgent) reach(m *vmm.Machine, nw *network.Network) {
	g.once.Do(func() {
		g.ways = []way{func(ctx context.Context) (net.Conn, error) { return nw.DialGuest(ctx, agent.Port) }}
		if m.HasVsock() {
			g.ways = append(g.ways, func(ctx context.Context) (net.Conn, error) {
				c, err := m.DialVsock(ctx, agent.Port)
				if err != nil {
					return nil, err
				}
				return vsockConn{c}, nil
			})
		}
	})
}

// vsockConn is a net.Conn of a vsock's.
type vsockConn struct{ *vmm.VsockConn }

func (vsockConn) LocalAddr() net.Addr  { return vsockAddr("host") }
func (vsockConn) RemoteAddr() net.Addr { return vsockAddr("guest") }

type vsockAddr string

func (vsockAddr) Network() string  { return "vsock" }
func (a vsockAddr) String() string { return string(a) }

// How long the agent is waited for: the first time, as its guest may be booting;
// when it is only to be asked for the end, which has another way; for one try;
// and between two.
const (
	agentBoot  = 10 * time.Second
	agentEnd   = time.Second
	agentTry   = time.Second
	agentPause = 10 * time.Millisecond
)

// giveAgent gives a machine that is to be made a key, by which its init, if it is
// smolinit, starts the agent.
func giveAgent(cfg *vmm.Config) (*guestAgent, error) {
	g := &guestAgent{key: agent.NewKey()}
	item, err := vmm.NewItem(agent.Item, []byte(g.key.String()))
	if err != nil {
		return nil, err
	}
	cfg.Items = append(cfg.Items, item)
	return g, nil
}

// Dial gives an authenticated byte stream to the agent.
func (g *guestAgent) Dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, agentBoot)
	defer cancel()
	return g.connect(ctx)
}

// connect tries until the agent answers, on every way at once until one is found: a
// guest does not say which it has.
func (g *guestAgent) connect(ctx context.Context) (net.Conn, error) {
	if w := g.found.Load(); w != nil {
		return g.follow(ctx, *w)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		way  *way
		conn net.Conn
		err  error
	}
	answers := make(chan answer)
	for i := range g.ways {
		go func() {
			c, err := g.follow(ctx, g.ways[i])
			answers <- answer{&g.ways[i], c, err}
		}()
	}
	var first net.Conn
	err := errors.New("the machine has no way to its guest")
	for i := range g.ways {
		a := <-answers
		switch {
		case a.err != nil:
			if i == 0 || !errors.Is(a.err, api.ErrNoAgent) {
				err = a.err // who answers wrongly is more to tell of than nobody
			}
		case first != nil:
			a.conn.Close()
		default:
			first = a.conn
			g.found.CompareAndSwap(nil, a.way)
			cancel()
		}
	}
	if first != nil {
		return first, nil
	}
	return nil, err
}

// follow tries one way until the agent answers or cannot any more.
func (g *guestAgent) follow(ctx context.Context, w way) (net.Conn, error) {
	for {
		c, err := g.try(ctx, w)
		switch {
		case err == nil:
			return c, nil
		case errors.Is(err, agent.ErrKey), errors.Is(err, agent.ErrProtocol):
			return nil, err
		case g.found.Load() != nil && (errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, vmm.ErrVsockRefused)):
			return nil, fmt.Errorf("the guest's agent has gone: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: nobody answers at its port %d (%w); an init that is not smolinit has no agent", api.ErrNoAgent, agent.Port, err)
		case <-time.After(agentPause): // a guest does not say that it listens now
		}
	}
}

// try connects and greets once.
func (g *guestAgent) try(ctx context.Context, w way) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTry)
	defer cancel()
	c, err := w(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	err = agent.Greet(c, g.key)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// answers waits until the agent has answered a question, or ctx is done.
func (g *guestAgent) answers(ctx context.Context) error {
	c, err := g.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = agent.Ask(ctx, c, agent.OpInfo)
	return err
}

// Shutdown asks the agent for the machine's end.
func (g *guestAgent) Shutdown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, agentEnd)
	defer cancel()
	c, err := g.connect(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = agent.Ask(ctx, c, agent.OpShutdown)
	return err
}
