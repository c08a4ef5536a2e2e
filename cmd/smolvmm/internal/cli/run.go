package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/network"
	"github.com/smolvmm/smolvmm/vmm"
)

// Causes of an end that the user or the host brought about.
var (
	errQuit    = errors.New("quit from the console")
	errTimeout = errors.New("time is up")
	// ErrLate is for attachments that have waited for the guest in vain.
	ErrLate = errors.New("the guest was not ready in time")
)

// SignalError is the cause when a signal ends the machine.
type SignalError struct {
	Sig syscall.Signal
	Why string // besides the signal's name
}

func (e SignalError) Error() string {
	if e.Why != "" {
		return unix.SignalName(e.Sig) + ": " + e.Why
	}
	return unix.SignalName(e.Sig)
}

// runOptions are what a run takes besides the machine's configuration.
type runOptions struct {
	console   string
	timeout   time.Duration
	registers bool               // print them when the guest did not end by itself
	verbose   bool               // tell what is done
	plan      *network.Plan      // of the network
	Attached  []Attachment       // told of it, in this order, and of its end in the opposite one
	after     func(*vmm.Machine) // called when the guest has ended
}

// Attachment is what a machine has beside itself: a name, an API.
type Attachment interface {
	// Attach is called before the machine is made.
	Attach(cfg *vmm.Config, con *Console, cancel context.CancelCauseFunc)
	// Running is called just before the guest runs; an error ends it all.
	Running(ctx context.Context, m *vmm.Machine, nw *network.Network) error
	// Ended is called when the guest is over, before anything is given back.
	Ended(exit vmm.Exit, err error)
	// Release is called last, however far it came; err is how it all ended.
	Release(err error)
}

// RunMachine builds and runs a machine on a console, and gives the process's
// exit status as an error. The terminal is restored on every way out: here for
// returns and signals, by the keeper for whatever ends the process otherwise.
func RunMachine(cfg vmm.Config, o runOptions, s Streams) (err error) {
	defer Wipe(cfg.Items)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	// Last of all the name is free, and the keeper does what it was told.
	var k *keeper
	defer func() {
		for _, a := range slices.Backward(o.Attached) {
			a.Release(err)
		}
		k.Release()
	}()
	nw, err := o.openNetwork(&cfg, s)
	if err != nil {
		return err
	}
	defer closeNetwork(nw, cfg.Log, &err)
	con, err := openConsole(o.console, s)
	if err != nil {
		return err
	}
	defer con.close()
	sockets, err := openVsock(&cfg)
	if err != nil {
		return err
	}
	defer sockets.close()
	for _, a := range o.Attached {
		a.Attach(&cfg, con, cancel)
	}

	// A reader that goes away ends the machine, as it ends any filter; for
	// that, a write must fail instead of ending the process.
	signal.Ignore(syscall.SIGPIPE)
	con.Out.broken = func() { cancel(SignalError{syscall.SIGPIPE, "nobody reads standard output any more"}) }

	var tty *Terminal
	var m *vmm.Machine // set before the guest runs, and so before a key is read
	if o.console == "stdio" {
		tty = NewTerminal(s.In, s.Raw)
		if tty != nil {
			con.in = &escapeReader{in: con.in.(*os.File), keys: func(key byte) {
				switch key {
				case keyQuit:
					cancel(errQuit)
				case keyBreak:
					m.InjectBreak()
				case keyHelp:
					fmt.Fprint(s.Out, escapeHelp)
				}
			}}
			con.Job.Cooked, con.Job.Raw = &tty.Cooked, &tty.Raw
		}
	}
	watching, stop := WatchSignals(ctx, cancel, tty, s)
	defer stop()
	for _, path := range nw.Sockets() {
		con.Job.Sockets = append(con.Job.Sockets, SocketFile{Path: path})
	}
	con.Job.Sockets = append(con.Job.Sockets, sockets.job()...)
	if !con.Job.none() {
		if k, err = StartKeeper(con.Job, s.In); err != nil {
			cfg.Log.Warn("the terminal or socket will not be put right if this process is killed", "err", err)
		} else {
			nw.KeptSockets()
			sockets.kept = true
			if con.Kept != nil {
				con.Kept()
			}
		}
	}
	defer tty.Restore()
	if err := tty.Enter(); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	if con.note != "" {
		fmt.Fprintln(s.Err, "smolvmm: "+con.note)
	}

	cfg.ConsoleOut = con.Out
	if con.in != nil {
		cfg.ConsoleIn = con.in
	}
	m, err = vmm.New(cfg)
	if err != nil {
		return err
	}
	defer func() {
		// What Close could not write is lost, whatever the guest believes.
		if cerr := m.Close(); cerr != nil && err == nil {
			err = fmt.Errorf("closing the machine: %w", cerr)
		} else if cerr != nil {
			cfg.Log.Warn("closing the machine", "err", cerr)
		}
	}()
	if o.timeout > 0 {
		t := time.AfterFunc(o.timeout, func() { cancel(fmt.Errorf("%w after %v", errTimeout, o.timeout)) })
		defer t.Stop()
	}
	if err := nw.Created(); err != nil {
		return Usagef("%w", err)
	}
	s.Started()
	<-watching
	for _, a := range o.Attached {
		if err := a.Running(ctx, m, nw); err != nil {
			return err
		}
	}
	exit, err := m.Run(ctx)
	nw.Ended(EndOf(exit, err), m.NetStats())
	for _, a := range slices.Backward(o.Attached) {
		a.Ended(exit, err)
	}
	tty.Restore()
	if err != nil {
		return err
	}
	if o.after != nil {
		o.after(m)
	}
	cfg.Log.Debug("the guest has ended", "how", exit.String())
	return o.report(exit, con.Out, s)
}

// EndOf tells how a run ended, for the audit log.
func EndOf(exit vmm.Exit, err error) string {
	if err != nil {
		return err.Error()
	}
	return exit.String()
}

// report tells of a machine's end and gives the process's status.
func (o runOptions) report(exit vmm.Exit, out *sink, s Streams) error {
	lost, open := out.state()
	if f, ok := out.W.(*os.File); open && ok && IsTerminal(f) {
		fmt.Fprintln(s.Out) // what follows begins its own line
	}
	if lost != nil && !errors.Is(lost, unix.EPIPE) {
		Complain(s, fmt.Errorf("console output was lost: %w", lost))
	}
	if o.registers && exit.Registers != "" {
		fmt.Fprintln(s.Err, strings.TrimRight(exit.Registers, "\n"))
	}
	return StatusOf(exit)
}

// lastWords is how long a process that was told to stop at once may talk.
const lastWords = 250 * time.Millisecond

// WatchSignals makes signals end the machine, not the process, and a second
// one the process at once. A stop puts the terminal back, and going on makes it
// raw again. watching is closed when it does so, which takes a fifth of a
// millisecond that the machine's making need not wait for. stop ends it.
func WatchSignals(ctx context.Context, cancel context.CancelCauseFunc, tty *Terminal, s Streams) (watching <-chan struct{}, stop func()) {
	wanted := []os.Signal{syscall.SIGTERM, syscall.SIGQUIT}
	for _, sig := range []os.Signal{syscall.SIGINT, syscall.SIGHUP} {
		// What nohup or a shell's & has made us ignore stays ignored.
		if !signal.Ignored(sig) {
			wanted = append(wanted, sig)
		}
	}
	if tty != nil {
		wanted = append(wanted, syscall.SIGTSTP, syscall.SIGCONT)
	}
	signals := make(chan os.Signal, 8)
	ready := make(chan struct{})
	done := make(chan struct{})
	go func() {
		signal.Notify(signals, wanted...)
		close(ready)
		for {
			select {
			case got := <-signals:
				switch sig := got.(syscall.Signal); {
				case sig == syscall.SIGTSTP:
					tty.leave()
					stopSelf()
				case sig == syscall.SIGCONT:
					_ = tty.Enter()
				case ctx.Err() != nil:
					tty.Restore()
					// Nobody may be reading what we have to say.
					time.AfterFunc(lastWords, func() { s.Exit(StatusSignal + int(sig)) })
					Complain(s, fmt.Errorf("%v while ending: stopped at once", unix.SignalName(sig)))
					s.Exit(StatusSignal + int(sig))
				default:
					cancel(SignalError{Sig: sig})
				}
			case <-done:
				return
			}
		}
	}()
	return ready, func() {
		<-ready
		signal.Stop(signals)
		close(done)
	}
}

// stopSelf stops every thread of this process. tgkill is the one way to signal
// oneself that the jail leaves.
func stopSelf() { _ = unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGSTOP) }

// StatusOf maps a machine's end to the process's exit status and last words.
func StatusOf(e vmm.Exit) error {
	var sig SignalError
	end := &StatusError{Err: errors.New(e.String())}
	switch e.End {
	case vmm.EndExit:
		if e.Status == 0 {
			return nil
		}
		// The status is the guest command's own: it has said what it had to say.
		return &StatusError{Status: e.Status}
	case vmm.EndReboot:
		end.Status = StatusReboot
	case vmm.EndTripleFault:
		end.Status = statusTripleFault
	case vmm.EndInternalError, vmm.EndEntryFailed:
		end.Status = statusInternalError
	case vmm.EndStopped:
		switch {
		case errors.Is(e.Cause, errQuit):
			end.Status = StatusQuit
		case errors.Is(e.Cause, errTimeout), errors.Is(e.Cause, ErrLate):
			end.Status = statusTimeout
		case errors.As(e.Cause, &sig):
			end.Status = StatusSignal + int(sig.Sig)
		default:
			end.Status = StatusMonitor
		}
	default:
		end.Status = StatusMonitor
	}
	return end
}
