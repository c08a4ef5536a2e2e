// Package cli is what the two programs have in common: it reads flags, environment and
// terminal, boots machines, and turns what happened into an exit status. It takes in
// what a boot needs and nothing more: each package beyond that is paid for by every
// start of every machine.
package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"unicode"

	"github.com/smolvmm/smolvmm/vmm"
)

// Exit statuses. A guest that writes the exit port gives its own instead, 0 to
// 255; docs/command.md and the README have this table for people.
const (
	StatusFailed        = 1   // a kernel could not be fetched or listed
	StatusUsage         = 2   // bad flag, file or image: nothing was started
	StatusReboot        = 120 // the guest reset its machine
	statusTripleFault   = 121
	statusInternalError = 122 // KVM could not go on, or refused to enter the guest
	StatusQuit          = 123 // Ctrl-a x, or Enter ~ . of exec -t
	statusTimeout       = 124 // -timeout, as timeout(1) has it
	StatusMonitor       = 125 // smolvmm or the host failed
	StatusSignal        = 128 // plus the signal's number
)

// Streams are the process's own, injected for tests.
type Streams struct {
	In       *os.File
	Out, Err io.Writer
	Env      func(string) (string, bool)
	// Raw is true while the terminal is in raw mode.
	Raw *atomic.Bool
	// Exit ends the process at once, when there is no time for an orderly way.
	Exit func(status int)
	// Started is told that the guest is about to run; tests break things then.
	Started func()
}

// stackRoom is as deep as the way to a guest's first instruction goes, in bytes.
const stackRoom = 12 << 10

// GrowStack grows the main goroutine's stack while there is next to nothing on
// it. Otherwise it would double four times deep in a start, each time with all
// frames to walk and move: 0.2 ms of 5.
//
//go:noinline
func GrowStack() {
	var room [stackRoom]byte
	touch(&room)
}

//go:noinline
func touch(room *[stackRoom]byte) { room[0] = 1 }

// OwnStreams are the real ones.
func OwnStreams() Streams {
	raw := new(atomic.Bool)
	return Streams{
		In: os.Stdin, Out: os.Stdout, Err: &LineWriter{W: os.Stderr, raw: raw},
		Env: os.LookupEnv, Raw: raw, Exit: os.Exit, Started: CloseInherited,
	}
}

// Program is one of the two that this package is for: smolvmm, which boots and starts
// in no time, and smolvmm-full, which has all that smolvmm's help shows.
type Program struct {
	Commands func() []Command // those that it has itself
	// Serve makes a boot that answers over HTTP, or logs as it is done there. nil is
	// the program that becomes the full one for that, and for the other's commands.
	Serve func(b *BootFlags, argv []string, s Streams, changed func(string) bool) error
}

// Lean is smolvmm.
func Lean() Program { return Program{Commands: OwnCommands} }

// Main is a program's main function.
func (p Program) Main() {
	if len(os.Args) > 0 && os.Args[0] == KeeperName {
		keeperMain()
		return
	}
	GrowStack()
	os.Exit(p.Run(os.Args[1:], OwnStreams()))
}

// command finds one of the program's own.
func (p Program) command(name string) (Command, bool) {
	for _, c := range p.Commands() {
		if c.Name == name {
			return c, true
		}
	}
	return Command{}, false
}

// Run is the program, apart from the process.
func (p Program) Run(args []string, s Streams) int {
	err := handedOver(func() string { return VersionOf(debug.ReadBuildInfo()) })
	if err == nil {
		err = p.dispatch(args, s)
	}
	var st *StatusError
	if err != nil && (!errors.As(err, &st) || st.Err != nil) {
		Complain(s, err)
	}
	return StatusFor(err)
}

// StatusFor is the exit status that an error stands for.
func StatusFor(err error) int {
	var st *StatusError
	var usage *UsageError
	var cfg *vmm.ConfigError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &st):
		return st.Status
	case errors.As(err, &usage), errors.As(err, &cfg):
		return StatusUsage
	}
	return StatusMonitor
}

// Complain prints an error on one line, whatever it is made of.
func Complain(s Streams, err error) {
	fmt.Fprintln(s.Err, "smolvmm: "+OneLine(err.Error()))
}

// OneLine joins lines and takes out what would steer a terminal: a file name
// may hold anything.
func OneLine(text string) string {
	text = strings.Join(strings.Split(strings.TrimSpace(text), "\n"), "; ")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, text)
}

func (p Program) dispatch(args []string, s Streams) error {
	if len(args) == 0 {
		fmt.Fprint(s.Err, HelpText())
		return &StatusError{Status: StatusUsage}
	}
	if strings.HasPrefix(args[0], "-") {
		if len(args) == 1 && isHelp(args[0]) {
			fmt.Fprint(s.Out, HelpText())
			return nil
		}
		return p.boot(args, s)
	}
	if args[0] == "help" {
		return p.help(args[1:], s)
	}
	if c, ok := p.command(args[0]); ok {
		if len(args) > 1 && isHelp(args[1]) {
			fmt.Fprint(s.Out, c.Help)
			return nil
		}
		return c.Run(args[1:], s)
	}
	names := []string{"help"}
	for _, v := range Verbs() {
		if v.Name == args[0] {
			return handOver(args[0], args)
		}
		names = append(names, v.Name)
	}
	if st, err := os.Stat(args[0]); err == nil && st.Mode().IsRegular() {
		return Usagef("%q is no command; a kernel is given with -kernel %s", args[0], args[0])
	}
	return Usagef("%q is no command%s: smolvmm --help shows them", args[0], DidYouMean(args[0], names, ""))
}

// UsageError is the user's to mend.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

func Usagef(format string, args ...any) error {
	return &UsageError{fmt.Errorf(format, args...)}
}

// Plain is a file's error without the path and the system call: the message
// around it names the file, and people do not call open(2).
func Plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// StatusError ends the program with a status, and with a line if err is set.
type StatusError struct {
	Status int
	Err    error
}

func (e *StatusError) Error() string {
	if e.Err != nil {
		return e.Err.Error()
	}
	return fmt.Sprintf("exit status %d", e.Status)
}
func (e *StatusError) Unwrap() error { return e.Err }
