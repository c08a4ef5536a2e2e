package build

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/smolvmm/smolvmm/builder"
	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/runvm"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/network"
	"github.com/smolvmm/smolvmm/vmm"
)

// newRunner gives what executes RUN. Nothing is opened before the first step.
func newRunner(o Options, tools *tools, blobs *blob.Store) (builder.Runner, error) {
	plan, err := o.Net.Plan()
	if err != nil {
		return nil, usagef("%w", err)
	}
	return runvm.New(runvm.Options{
		Kernel: func(context.Context) (vmm.File, error) {
			if o.Kernel != "" {
				return vmm.File{Path: o.Kernel}, nil
			}
			k, err := kernels.Find("", "")
			if err != nil {
				return vmm.File{}, fmt.Errorf("a machine needs a kernel: %w", err)
			}
			return vmm.File{Path: k.Path}, nil
		},
		Init: tools.Init, Blobs: blobs, Temp: o.Images, Memory: o.Memory, CPUs: o.CPUs,
		Network: func(context.Context) (runvm.Network, error) {
			n, err := plan.Open(network.Host{Log: slog.New(slog.DiscardHandler), Report: func(string) {}})
			if err != nil {
				return runvm.Network{}, err
			}
			return runvm.Network{Nets: n.Nets(), Close: n.Close}, nil
		},
	})
}
