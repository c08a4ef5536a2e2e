package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/vmm/agent"
	"github.com/smolvmm/smolvmm/vmm/agent/agentd"
)

// agentSystem is what the agent's server needs of process 1.
type agentSystem struct {
	*children
	booted time.Time
}

func (a agentSystem) Start(s agentd.Spec) (int, <-chan syscall.WaitStatus, error) { return a.start(s) }

func (agentSystem) Kill(group int, sig syscall.Signal) error { return syscall.Kill(-group, sig) }

func (a agentSystem) Info() agent.Started { return agentd.Info(a.booted) }

// Shutdown has the supervisor end the command, as the signal from outside does.
func (agentSystem) Shutdown() { _ = syscall.Kill(os.Getpid(), syscall.SIGTERM) }

// serveAgent starts the agent if the host gave a key. It takes callers on every
// address, of which the host-only link's is one: whoever has no key gets nothing.
func (s *system) serveAgent(key []byte) error {
	if key == nil {
		return nil
	}
	k, err := agent.ParseKey(string(key))
	clear(key)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", fmt.Sprintf(":%d", agent.Port))
	if err != nil {
		return fmt.Errorf("%w: nobody can be talked to", err)
	}
	server := &agentd.Server{
		Key: k, System: agentSystem{&s.children, time.Now()}, Env: s.cfg.environ(), Cwd: s.cfg.Cwd,
		Logf: func(format string, args ...any) { s.notef("agent: "+format, args...) },
	}
	go func() {
		if err := server.Serve(l); err != nil && !errors.Is(err, net.ErrClosed) {
			s.notef("agent: %v", err)
		}
	}()
	return nil
}
