// Command smolvmm boots a NetBSD kernel in a virtual machine on Linux/KVM.
//
// This folder reads flags, environment and terminal, and turns what happened
// into an exit status. Everything else is in the packages it calls.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/smolvmm/smolvmm/vmm"
)

// Exit statuses. A guest that writes the exit port gives its own instead, 0 to
// 255; docs/exit-status.md and the README have this table for people.
const (
	statusUsage         = 2   // bad flag, file or image: nothing was started
	statusReboot        = 120 // the guest reset its machine
	statusTripleFault   = 121
	statusInternalError = 122 // KVM could not go on, or refused to enter the guest
	statusQuit          = 123 // Ctrl-a x
	statusTimeout       = 124 // -timeout, as timeout(1) has it
	statusMonitor       = 125 // smolvmm or the host failed
	statusSignal        = 128 // plus the signal's number
)

// streams are the process's own, injected for tests.
type streams struct {
	in       *os.File
	out, err io.Writer
	env      func(string) (string, bool)
}

func main() {
	os.Exit(run(os.Args[1:], streams{os.Stdin, os.Stdout, os.Stderr, os.LookupEnv}))
}

// command is a subcommand; booting a machine is what happens without one.
type command struct {
	name, args, short string
	run               func(args []string, s streams) error
}

func commands() []command {
	return []command{
		{"demo", "[MODE]", "boot the built-in test guest and check every device", demoRun},
		{"kernel", "fetch|list", "download NetBSD kernels, show those at hand", kernelCommand},
		{"doctor", "", "check this host, and say how to mend it", doctor},
		{"version", "", "print the version", version},
	}
}

// run is the program, apart from the process.
func run(args []string, s streams) int {
	err := dispatch(args, s)
	var st *statusError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &st):
		if st.err != nil {
			complain(s, st.err)
		}
		return st.status
	}
	complain(s, err)
	var usage *usageError
	var cfg *vmm.ConfigError
	if errors.As(err, &usage) || errors.As(err, &cfg) {
		return statusUsage
	}
	return statusMonitor
}

// complain prints an error on one line, whatever it is made of.
func complain(s streams, err error) {
	fmt.Fprintln(s.err, "smolvmm: "+strings.Join(strings.Split(strings.TrimSpace(err.Error()), "\n"), "; "))
}

func dispatch(args []string, s streams) error {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		for _, c := range commands() {
			if c.name == args[0] {
				return c.run(args[1:], s)
			}
		}
		if args[0] == "help" {
			fmt.Fprint(s.out, helpText)
			return nil
		}
		return &usageError{fmt.Errorf("%q is no command: smolvmm --help shows them; a kernel is given with -kernel", args[0])}
	}
	return boot(args, s)
}

// usageError is the user's to mend.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// statusError ends the program with a status, and with a line if err is set.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string {
	if e.err != nil {
		return e.err.Error()
	}
	return fmt.Sprintf("exit status %d", e.status)
}
func (e *statusError) Unwrap() error { return e.err }
