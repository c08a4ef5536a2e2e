// Package api serves a machine over HTTP on a Unix socket: Firecracker's paths
// and JSON for what both have, and below /smolvmm/ what is smolvmm's own.
//
// The server knows the machine by the interface Host and opens no file once the
// guest runs, so that it works in a confined process. docs/api.md is for users.
package api

import (
	"context"
	"errors"
	"io"
	"net"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/client"
)

// Host is the process that the server is in, and its machine. Methods are called
// from any goroutine; those below Start only while the machine runs.
type Host interface {
	// Start makes the machine that s describes and returns when the guest
	// runs. An error leaves everything as it was, and may be followed by
	// another Start. It is not called where Config.Booted is set.
	Start(s Spec) error

	Pause() error
	Resume() error
	// Kill ends the machine as if its power were cut; why is for the log.
	Kill(why string)
	Metrics() vmm.Metrics
	// Ports, Egress and Flows tell of the network; Egress has a map of counters for
	// each interface, Flows what is open behind all of them, the newest first.
	Ports() []client.Port
	Egress() []map[string]uint64
	Flows(max int) []client.Flow
}

// ErrNoAgent: nobody in the guest can be spoken to.
var ErrNoAgent = errors.New("the guest has no agent that could be asked")

// Agent is the way to the agent in the guest. Its errors are told to the caller;
// ErrNoAgent among them means that there is none.
type Agent interface {
	// Dial gives an authenticated byte stream to the agent.
	Dial(ctx context.Context) (net.Conn, error)
	// Shutdown asks the guest to shut down, and returns when it has been asked.
	Shutdown(ctx context.Context) error
}

// Console is the kept output of the guest's console.
type Console interface {
	// Tail gives the last n bytes at most.
	Tail(n int64) (io.Reader, error)
}

// Spec is a machine as the API's users describe it.
type Spec struct {
	Boot    BootSource
	Machine MachineConfig
	Drives  []Drive // the root device first
	Nets    []NetworkInterface
	Vsock   *Vsock
	Options BootOptions
}
