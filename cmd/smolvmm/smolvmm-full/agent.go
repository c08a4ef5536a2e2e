package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/api"
	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/agent"
)

// guestAgent is the way to the agent in the guest: a connection over the
// network's stack, without any socket of the host, and a greeting that proves
// the key.
type guestAgent struct {
	key  agent.Key
	dial func(ctx context.Context, port uint16) (net.Conn, error)
	// answered: the agent has been there, so its absence is no longer the boot's.
	answered atomic.Bool
}

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

func (g *guestAgent) connect(ctx context.Context) (net.Conn, error) {
	for {
		c, err := g.try(ctx)
		switch {
		case err == nil:
			g.answered.Store(true)
			return c, nil
		case errors.Is(err, agent.ErrKey), errors.Is(err, agent.ErrProtocol):
			return nil, err
		case g.answered.Load() && errors.Is(err, syscall.ECONNREFUSED):
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
func (g *guestAgent) try(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, agentTry)
	defer cancel()
	c, err := g.dial(ctx, agent.Port)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	err = c.SetDeadline(deadline)
	if err == nil {
		err = agent.Greet(c, g.key)
	}
	if err == nil {
		err = c.SetDeadline(time.Time{})
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
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
