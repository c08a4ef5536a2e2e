package cli

import (
	"strings"

	"github.com/smolvmm/smolvmm/vmm"
)

// Confinement says how the process is to be confined. A smolvmm process runs
// one machine and nothing else, so confinement is on unless it is turned off.
func Confinement(mode, console string) (c vmm.Confinement, err error) {
	if c.Mode, err = vmm.ParseConfineMode(mode); err != nil {
		return c, Usagef("-confine %q: must be enforce, log, trap or off", mode)
	}
	kind, _, _ := strings.Cut(console, ":")
	c.Console = map[string]vmm.ConsoleKind{
		"stdio": vmm.ConsoleStdio, "pty": vmm.ConsolePty, "unix": vmm.ConsoleSocket,
	}[kind]
	return c, nil
}
