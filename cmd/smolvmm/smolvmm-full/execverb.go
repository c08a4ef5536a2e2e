package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
	"github.com/smolvmm/smolvmm/vmm/agent"
	"github.com/smolvmm/smolvmm/vmm/client"
)

const execHelp = `smolvmm exec runs a command in a machine that runs.

Usage: smolvmm exec [flags] NAME COMMAND [ARG]…

  -i, --interactive    standard input goes to the command
  -t, --tty            give it a terminal, as large as this one
  -e, --env K[=V]      variable, over the machine's own; repeatable. Without a
                       value it is the one that is set here, and no ps shows it
  -w, --workdir DIR    directory (default: that of the machine's own command)
  -u, --user USER      user, USER:GROUP, names or numbers (default root)

Exit status: the command's own; 125 where it could not be asked for, 126 where
it is no program, 127 where there is none, 128+N for signal N. Signals go to the
command; the second of a kind gives up on it, and ends it. So do, with -t, the
keys ~ and . at the beginning of a line; ~ twice is one ~.

  smolvmm exec web ls -l /etc           smolvmm exec -it web sh
`

const shellHelp = `smolvmm shell starts a shell in a machine that runs.

Usage: smolvmm shell [flags] NAME

  -e, --env K[=V]   -w, --workdir DIR   -u, --user USER    as for smolvmm exec

It is smolvmm exec -it NAME /bin/sh; without a terminal here, exec -i. The keys
~ and . at the beginning of a line end a shell that hangs.
`

// execFlags are the flags of exec and shell.
type execFlags struct {
	stdin, tty, help bool
	env              []string
	dir, user        string
}

func (e *execFlags) set() *pflag.FlagSet {
	f := pflag.NewFlagSet("exec", pflag.ContinueOnError)
	f.SortFlags = false
	f.SetInterspersed(false) // what stands behind the name is the command's
	f.BoolVarP(&e.stdin, "interactive", "i", false, "standard input goes to the command")
	f.BoolVarP(&e.tty, "tty", "t", false, "give it a terminal, as large as this one")
	e.common(f)
	return f
}

func (e *execFlags) common(f *pflag.FlagSet) {
	f.StringArrayVarP(&e.env, "env", "e", nil, "variable `K[=V]`, over the machine's own; without a value that of this environment; repeatable")
	f.StringVarP(&e.dir, "workdir", "w", "", "`DIR`ectory to run it in")
	f.StringVarP(&e.user, "user", "u", "", "`USER`, or USER:GROUP, to run it as")
	f.BoolVarP(&e.help, "help", "h", false, "show the help")
}

func (e *execFlags) shellSet() *pflag.FlagSet {
	f := pflag.NewFlagSet("shell", pflag.ContinueOnError)
	f.SortFlags = false
	e.common(f)
	return f
}

// execCommand is `smolvmm exec`.
func execCommand(args []string, s cli.Streams) error {
	var e execFlags
	words, err := parseWords(e.set(), args)
	switch {
	case err != nil:
		return err
	case e.help:
		fmt.Fprint(s.Out, execHelp)
		return nil
	case len(words) < 1 || words[0] == "":
		return cli.Usagef("exec: which machine? smolvmm ps lists them")
	case len(words) < 2:
		return cli.Usagef("exec: which command? smolvmm shell %s gives a shell", words[0])
	}
	return e.run(words[0], words[1:], s)
}

// shellCommand is `smolvmm shell`.
func shellCommand(args []string, s cli.Streams) error {
	var e execFlags
	words, err := parseWords(e.shellSet(), args)
	switch {
	case err != nil:
		return err
	case e.help:
		fmt.Fprint(s.Out, shellHelp)
		return nil
	case len(words) < 1 || words[0] == "":
		return cli.Usagef("shell: which machine? smolvmm ps lists them")
	case len(words) > 1:
		return cli.Usagef("shell: %q: too many words; smolvmm exec runs commands", words[1])
	}
	e.stdin, e.tty = true, cli.IsTerminal(s.In)
	return e.run(words[0], []string{"/bin/sh"}, s)
}

// liveMachine finds a machine that runs.
func liveMachine(name string, s cli.Streams) (*machines.Store, *machines.Machine, error) {
	store, err := machines.Open(s.Env)
	if err != nil {
		return nil, nil, err
	}
	m, err := store.Get(name)
	switch {
	case err != nil:
		return nil, nil, named(err)
	case !m.Alive:
		return nil, nil, cli.Usagef("machine %s has ended", name)
	}
	return store, m, nil
}

// run runs a command in a machine, on this process's streams.
func (e *execFlags) run(name string, argv []string, s cli.Streams) error {
	var env []string
	for _, text := range e.env {
		k, v, err := cli.Variable(text, s.Env)
		if err != nil {
			return err
		}
		env = append(env, k+"="+v)
	}
	if e.tty && !cli.IsTerminal(s.In) {
		return cli.Usagef("-t: standard input is no terminal")
	}
	store, m, err := liveMachine(name, s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	stream, err := client.New(m.Spec.Socket).Agent(ctx)
	if err != nil {
		return fmt.Errorf("machine %s: %w", name, unwrapped(err))
	}
	// Arguments may hold secrets: the log has the command's name only.
	if err := store.Audit(m, machines.AuditExec, argv[0]); err != nil {
		stream.Close()
		return err
	}
	c := agent.Command{Argv: argv, Env: env, Cwd: e.dir, User: e.user, Stdout: s.Out, Stderr: s.Err}
	if e.stdin {
		c.Stdin = s.In
	}
	var tty *cli.Terminal
	if e.tty {
		size := sizeOf(s.In)
		c.TTY = &size
		if e.stdin {
			c.Stdin = &leaver{in: s.In, leave: func() { cancel(errLeft) }}
		}
		tty = cli.NewTerminal(s.In, s.Raw)
		c.Env = append([]string{"TERM=" + kindOfTerminal(s)}, c.Env...)
		k, err := cli.StartKeeper(cli.KeeperJob{Cooked: &tty.Cooked, Raw: &tty.Raw}, s.In)
		if err == nil {
			defer k.Release()
		}
	}
	// The terminal is made raw only when there is a command to type to.
	p, err := agent.Start(ctx, stream, c)
	if err != nil {
		return execError(name, err)
	}
	defer tty.Restore()
	if err := tty.Enter(); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	stop := forward(p, cancel, s.In, e.tty)
	status, err := p.Wait()
	stop()
	tty.Restore()
	if err != nil {
		return execError(name, err)
	}
	return &cli.StatusError{Status: status.Code}
}

// execError gives what the agent or the way to it had to say a status.
func execError(name string, err error) error {
	var remote *agent.RemoteError
	var sig cli.SignalError
	switch {
	case errors.Is(err, errLeft):
		return &cli.StatusError{Status: cli.StatusQuit, Err: fmt.Errorf("machine %s: %w", name, err)}
	case errors.As(err, &remote):
		return &cli.StatusError{Status: remote.Code, Err: fmt.Errorf("machine %s: %w", name, err)}
	case errors.As(err, &sig):
		return &cli.StatusError{Status: cli.StatusSignal + int(sig.Sig), Err: fmt.Errorf("machine %s: the command was given up on: %w", name, err)}
	}
	return fmt.Errorf("machine %s: %w", name, err)
}

// unwrapped leaves the words of HTTP out of what a machine answered.
func unwrapped(err error) error {
	var e *client.Error
	if errors.As(err, &e) {
		return errors.New(e.Message)
	}
	return err
}

// kindOfTerminal is the kind of this terminal, which the guest's programs draw for.
func kindOfTerminal(s cli.Streams) string {
	if t, ok := s.Env("TERM"); ok && t != "" {
		return t
	}
	return "vt220"
}

// sizeOf is a terminal's size.
func sizeOf(f *os.File) agent.Size {
	w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return agent.Size{Rows: 24, Cols: 80}
	}
	return agent.Size{Rows: w.Row, Cols: w.Col}
}

// forward gives this process's signals, and the terminal's new sizes, to the
// command. The second signal of a kind ends the wait for it.
func forward(p *agent.Process, cancel context.CancelCauseFunc, in *os.File, tty bool) (stop func()) {
	wanted := []os.Signal{syscall.SIGTERM, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGHUP} {
		if !signal.Ignored(sig) {
			wanted = append(wanted, sig)
		}
	}
	if tty {
		wanted = append(wanted, syscall.SIGWINCH)
	}
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, wanted...)
	done := make(chan struct{})
	go func() {
		seen := map[syscall.Signal]bool{}
		for {
			select {
			case got := <-signals:
				sig := got.(syscall.Signal)
				switch {
				case sig == syscall.SIGWINCH:
					_ = p.Resize(sizeOf(in))
				case seen[sig]:
					cancel(cli.SignalError{Sig: sig})
				default:
					seen[sig] = sig != syscall.SIGUSR1 && sig != syscall.SIGUSR2
					_ = p.Signal(unix.SignalName(sig))
				}
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
	}
}
