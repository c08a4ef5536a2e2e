package cli

import (
	"fmt"
	"log/slog"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/network"
	"github.com/smolvmm/smolvmm/vmm"
)

// openNetwork opens what the flags ask for and attaches it to the machine. It is
// there before the machine: a port that is taken is an error before anything ran.
func (o *runOptions) openNetwork(cfg *vmm.Config, s Streams) (*network.Network, error) {
	n, err := o.plan.Open(network.Host{
		Log: cfg.Log, Verbose: o.verbose, ListenUnix: ListenUnix,
		Report: func(line string) { fmt.Fprintln(s.Err, "smolvmm: "+line) },
	})
	if err != nil {
		return nil, Usagef("%w", err)
	}
	cfg.Nets = n.Nets()
	return n, nil
}

// closeNetwork gives a network back when its machine is gone. What could not be
// written is the program's error, if there is no other.
func closeNetwork(n *network.Network, log *slog.Logger, err *error) {
	cerr := n.Close()
	switch {
	case cerr == nil:
	case *err == nil:
		*err = fmt.Errorf("closing the network: %w", cerr)
	default:
		log.Warn("closing the network", "err", cerr)
	}
}
