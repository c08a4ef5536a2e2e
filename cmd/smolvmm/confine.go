package main

import (
	"strings"

	"github.com/smolvmm/smolvmm/vmm"
)

// confinement sets how the process is confined. A smolvmm process runs one
// machine and nothing else, so confinement is on unless it is turned off.
func confinement(cfg *vmm.Config, mode, console string) error {
	m, err := vmm.ParseConfineMode(mode)
	if err != nil {
		return usagef("-confine %q: must be enforce, log, trap or off", mode)
	}
	kinds := map[string]vmm.ConsoleKind{
		"stdio": vmm.ConsoleStdio, "pty": vmm.ConsolePty, "unix": vmm.ConsoleSocket,
	}
	kind, _, _ := strings.Cut(console, ":")
	cfg.Confine = vmm.Confinement{Mode: m, Console: kinds[kind]}
	return nil
}
