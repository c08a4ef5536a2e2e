// Command smolvmm boots a NetBSD kernel in a virtual machine on Linux/KVM.
//
// This folder reads flags, environment and terminal, and turns what happened
// into an exit status. Everything else is in the packages it calls.
package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"sync/atomic"
	"unicode"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/bench"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels/mirror"
	"github.com/smolvmm/smolvmm/vmm"
)

// Exit statuses. A guest that writes the exit port gives its own instead, 0 to
// 255; docs/command.md and the README have this table for people.
const (
	statusFailed        = 1   // a kernel could not be fetched or listed
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
	// raw is true while the terminal is in raw mode.
	raw *atomic.Bool
	// exit ends the process at once, when there is no time for an orderly way.
	exit func(status int)
	// started is told that the guest is about to run; tests break things then.
	started func()
	// parent is who waits for a detached machine to be ready; nil in all other
	// processes.
	parent *parent
}

func main() {
	if len(os.Args) > 0 && os.Args[0] == keeperName {
		keeperMain()
		return
	}
	if len(os.Args) > 0 && os.Args[0] == machineName {
		growStack()
		os.Exit(machineMain(os.Args[1:]))
	}
	growStack()
	os.Exit(run(os.Args[1:], ownStreams()))
}

// stackRoom is as deep as the way to a guest's first instruction goes, in bytes.
const stackRoom = 12 << 10

// growStack grows the main goroutine's stack while there is next to nothing on
// it. Otherwise it would double four times deep in a start, each time with all
// frames to walk and move: 0.2 ms of 5.
//
//go:noinline
func growStack() {
	var room [stackRoom]byte
	touch(&room)
}

//go:noinline
func touch(room *[stackRoom]byte) { room[0] = 1 }

// ownStreams are the real ones.
func ownStreams() streams {
	raw := new(atomic.Bool)
	return streams{
		in: os.Stdin, out: os.Stdout, err: &lineWriter{w: os.Stderr, raw: raw},
		env: os.LookupEnv, raw: raw, exit: os.Exit, started: closeInherited,
	}
}

// command is a subcommand; booting a machine is what happens without one.
type command struct {
	name    string
	group   string // where `help commands` has it: one of the groups
	summary string // a few words
	help    string // the whole help text
	// flags makes its flags, for completion and the man page; nil: it has none.
	flags func() *pflag.FlagSet
	// names says what its words are, for completion: nothing, files, machines or images.
	names nameKind
	run   func(args []string, s streams) error
}

// The groups of commands, in the order of the help.
const (
	groupMachines = "Machines"
	groupImages   = "Images"
	groupOther    = "Other"
)

func groups() []string { return []string{groupMachines, groupImages, groupOther} }

// nameKind is what the words behind a command are.
type nameKind string

const (
	noNames      nameKind = ""
	machineNames nameKind = "machines"
	imageNames   nameKind = "images"
	fileNames    nameKind = "files"
)

// commands are all of them, in the order of the help.
func commands() []command {
	return append([]command{
		{name: "run", group: groupMachines, summary: "run a machine with a name, here or in the background", help: runHelp, run: runCommand, flags: func() *pflag.FlagSet { return new(runFlags).set() }, names: imageNames},
		{name: "ps", group: groupMachines, summary: "list machines", help: psHelp, run: psCommand, flags: func() *pflag.FlagSet { return new(psFlags).set() }},
		{name: "logs", group: groupMachines, summary: "show what a machine has printed", help: logsHelp, run: logsCommand, flags: func() *pflag.FlagSet { return new(logsFlags).set() }, names: machineNames},
		{name: "exec", group: groupMachines, summary: "run a command in a machine", help: execHelp, run: execCommand, flags: func() *pflag.FlagSet { return new(execFlags).set() }, names: machineNames},
		{name: "shell", group: groupMachines, summary: "start a shell in a machine", help: shellHelp, run: shellCommand, flags: func() *pflag.FlagSet { return new(execFlags).shellSet() }, names: machineNames},
		{name: "cp", group: groupMachines, summary: "copy files to and from a machine", help: cpHelp, run: cpCommand, flags: func() *pflag.FlagSet { return new(cpFlags).set() }, names: machineNames},
		{name: "stop", group: groupMachines, summary: "ask machines to shut down, then end them", help: stopHelp, run: stopCommand, flags: func() *pflag.FlagSet { return new(stopFlags).set() }, names: machineNames},
		{name: "kill", group: groupMachines, summary: "end machines as if their power were cut", help: killHelp, run: killCommand, flags: helpOnly("kill"), names: machineNames},
		{name: "wait", group: groupMachines, summary: "wait for machines to end", help: waitHelp, run: waitCommand, flags: helpOnly("wait"), names: machineNames},
		{name: "rm", group: groupMachines, summary: "remove machines that have ended", help: rmHelp, run: rmCommand, flags: func() *pflag.FlagSet { return new(rmFlags).set() }, names: machineNames},
		{name: "inspect", group: groupMachines, summary: "show all that is known of machines, as JSON", help: inspectHelp, run: inspectCommand, flags: helpOnly("inspect"), names: machineNames},
		{name: "stats", group: groupMachines, summary: "show what machines use, live", help: statsHelp, run: statsCommand, flags: func() *pflag.FlagSet { return new(statsFlags).set() }, names: machineNames},
		{name: "cleanup", group: groupMachines, summary: "remove what dead machines left behind", help: cleanupHelp, run: cleanupCommand, flags: func() *pflag.FlagSet { return new(cleanupFlags).set() }},
		{name: "demo", group: groupOther, summary: "boot the built-in test guest", help: demoHelp, run: demoRun, flags: func() *pflag.FlagSet { return demoFlags(new(bootFlags), new(bool)) }},
		{name: "build", group: groupImages, summary: "make a bootable image from a Dockerfile", help: buildHelp, run: buildCommand, flags: func() *pflag.FlagSet { return new(buildFlags).set() }, names: fileNames},
		{name: "kernel", group: groupImages, summary: "fetch and list NetBSD's own kernels", help: kernelHelp, run: kernelCommand, flags: func() *pflag.FlagSet { return kernelFlags(new(mirror.Options), new(bool)) }},
		{name: bench.Name, group: groupOther, summary: bench.Summary, help: bench.Help, run: benchCommand, flags: benchFlags},
		{name: "completion", group: groupOther, summary: "print a completion script: bash, zsh or fish", help: completionHelp, run: completion},
		{name: "man", group: groupOther, summary: "print the manual page", help: manHelp, run: man},
		{name: "doctor", group: groupOther, summary: "say whether machines can run here", help: doctorHelp, run: doctor},
		{name: "version", group: groupOther, summary: "print the version", help: versionHelp, run: version},
	}, imageCommands()...)
}

// run is the program, apart from the process.
func run(args []string, s streams) int {
	err := dispatch(args, s)
	var st *statusError
	if err != nil && (!errors.As(err, &st) || st.err != nil) {
		complain(s, err)
	}
	return statusFor(err)
}

// statusFor is the exit status that an error stands for.
func statusFor(err error) int {
	var st *statusError
	var usage *usageError
	var cfg *vmm.ConfigError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &st):
		return st.status
	case errors.As(err, &usage), errors.As(err, &cfg):
		return statusUsage
	}
	return statusMonitor
}

// complain prints an error on one line, whatever it is made of.
func complain(s streams, err error) {
	fmt.Fprintln(s.err, "smolvmm: "+oneLine(err.Error()))
}

// oneLine joins lines and takes out what would steer a terminal: a file name
// may hold anything.
func oneLine(text string) string {
	text = strings.Join(strings.Split(strings.TrimSpace(text), "\n"), "; ")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, text)
}

func dispatch(args []string, s streams) error {
	if len(args) == 0 {
		fmt.Fprint(s.err, helpText())
		return &statusError{status: statusUsage}
	}
	if strings.HasPrefix(args[0], "-") {
		if len(args) == 1 && isHelp(args[0]) {
			fmt.Fprint(s.out, helpText())
			return nil
		}
		return boot(args, s)
	}
	if args[0] == "help" {
		return help(args[1:], s)
	}
	names := []string{"help"}
	for _, c := range commands() {
		if c.name == args[0] {
			if len(args) > 1 && isHelp(args[1]) {
				fmt.Fprint(s.out, c.help)
				return nil
			}
			return c.run(args[1:], s)
		}
		names = append(names, c.name)
	}
	if st, err := os.Stat(args[0]); err == nil && st.Mode().IsRegular() {
		return usagef("%q is no command; a kernel is given with -kernel %s", args[0], args[0])
	}
	return usagef("%q is no command%s: smolvmm --help shows them", args[0], didYouMean(args[0], names, ""))
}

// usageError is the user's to mend.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Errorf(format, args...)}
}

// plain is a file's error without the path and the system call: the message
// around it names the file, and people do not call open(2).
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
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
