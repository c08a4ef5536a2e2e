package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
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
)

// signalError is the cause when a signal ends the machine.
type signalError struct {
	sig syscall.Signal
	why string // besides the signal's name
}

func (e signalError) Error() string {
	if e.why != "" {
		return unix.SignalName(e.sig) + ": " + e.why
	}
	return unix.SignalName(e.sig)
}

// runOptions are what a run takes besides the machine's configuration.
type runOptions struct {
	console   string
	timeout   time.Duration
	registers bool               // print them when the guest did not end by itself
	verbose   bool               // tell what is done
	plan      *network.Plan      // of the network
	named     *namedMachine      // what else a machine with a name has; nil: it has none
	api       *apiServer         // who asks about it over HTTP; nil: nobody
	after     func(*vmm.Machine) // called when the guest has ended
}

// runMachine builds and runs a machine on a console, and gives the process's
// exit status as an error. The terminal is restored on every way out: here for
// returns and signals, by the keeper for whatever ends the process otherwise.
func runMachine(cfg vmm.Config, o runOptions, s streams) (err error) {
	defer wipe(cfg.Items)
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	// Last of all the name is free, and the keeper does what it was told.
	var k *keeper
	defer func() {
		o.api.release(err)
		o.named.release(err)
		k.release()
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
	o.named.attach(&cfg, con, cancel)
	o.api.attach(&cfg, con, cancel)

	// A reader that goes away ends the machine, as it ends any filter; for
	// that, a write must fail instead of ending the process.
	signal.Ignore(syscall.SIGPIPE)
	con.out.broken = func() { cancel(signalError{syscall.SIGPIPE, "nobody reads standard output any more"}) }

	var tty *terminal
	var m *vmm.Machine // set before the guest runs, and so before a key is read
	if o.console == "stdio" {
		tty = newTerminal(s.in, s.raw)
		if tty != nil {
			con.in = &escapeReader{in: con.in.(*os.File), keys: func(key byte) {
				switch key {
				case keyQuit:
					cancel(errQuit)
				case keyBreak:
					m.InjectBreak()
				case keyHelp:
					fmt.Fprint(s.out, escapeHelp)
				}
			}}
			con.job.Cooked, con.job.Raw = &tty.cooked, &tty.raw
		}
	}
	watching, stop := watchSignals(ctx, cancel, tty, s)
	defer stop()
	for _, path := range nw.Sockets() {
		con.job.Sockets = append(con.job.Sockets, socketFile{Path: path})
	}
	con.job.Sockets = append(con.job.Sockets, sockets.job()...)
	if !con.job.none() {
		if k, err = startKeeper(con.job, s.in); err != nil {
			cfg.Log.Warn("the terminal or socket will not be put right if this process is killed", "err", err)
		} else {
			nw.KeptSockets()
			sockets.kept = true
			if con.kept != nil {
				con.kept()
			}
		}
	}
	defer tty.restore()
	if err := tty.enter(); err != nil {
		return fmt.Errorf("terminal: %w", err)
	}
	if con.note != "" {
		fmt.Fprintln(s.err, "smolvmm: "+con.note)
	}

	cfg.ConsoleOut = con.out
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
		return usagef("%w", err)
	}
	s.started()
	<-watching
	if err := o.named.running(ctx, nw); err != nil {
		return err
	}
	o.api.running(m, nw)
	exit, err := m.Run(ctx)
	o.api.ended(exit, err)
	nw.Ended(endOf(exit, err), m.NetStats())
	o.named.ended(exit, err)
	tty.restore()
	if err != nil {
		return err
	}
	if o.after != nil {
		o.after(m)
	}
	cfg.Log.Debug("the guest has ended", "how", exit.String())
	return o.report(exit, con.out, s)
}

// endOf tells how a run ended, for the audit log.
func endOf(exit vmm.Exit, err error) string {
	if err != nil {
		return err.Error()
	}
	return exit.String()
}

// report tells of a machine's end and gives the process's status.
func (o runOptions) report(exit vmm.Exit, out *sink, s streams) error {
	lost, open := out.state()
	if f, ok := out.w.(*os.File); open && ok && isTerminal(f) {
		fmt.Fprintln(s.out) // what follows begins its own line
	}
	if lost != nil && !errors.Is(lost, unix.EPIPE) {
		complain(s, fmt.Errorf("console output was lost: %w", lost))
	}
	if o.registers && exit.Registers != "" {
		fmt.Fprintln(s.err, strings.TrimRight(exit.Registers, "\n"))
	}
	return statusOf(exit)
}

// lastWords is how long a process that was told to stop at once may talk.
const lastWords = 250 * time.Millisecond

// watchSignals makes signals end the machine, not the process, and a second
// one the process at once. A stop puts the terminal back, and going on makes it
// raw again. watching is closed when it does so, which takes a fifth of a
// millisecond that the machine's making need not wait for. stop ends it.
func watchSignals(ctx context.Context, cancel context.CancelCauseFunc, tty *terminal, s streams) (watching <-chan struct{}, stop func()) {
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
					_ = tty.enter()
				case ctx.Err() != nil:
					tty.restore()
					// Nobody may be reading what we have to say.
					time.AfterFunc(lastWords, func() { s.exit(statusSignal + int(sig)) })
					complain(s, fmt.Errorf("%v while ending: stopped at once", unix.SignalName(sig)))
					s.exit(statusSignal + int(sig))
				default:
					cancel(signalError{sig: sig})
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

// statusOf maps a machine's end to the process's exit status and last words.
func statusOf(e vmm.Exit) error {
	var sig signalError
	end := &statusError{err: errors.New(e.String())}
	switch e.End {
	case vmm.EndExit:
		if e.Status == 0 {
			return nil
		}
		// The status is the guest command's own: it has said what it had to say.
		return &statusError{status: e.Status}
	case vmm.EndReboot:
		end.status = statusReboot
	case vmm.EndTripleFault:
		end.status = statusTripleFault
	case vmm.EndInternalError, vmm.EndEntryFailed:
		end.status = statusInternalError
	case vmm.EndStopped:
		switch {
		case errors.Is(e.Cause, errQuit):
			end.status = statusQuit
		case errors.Is(e.Cause, errTimeout), errors.Is(e.Cause, errNotReady):
			end.status = statusTimeout
		case errors.As(e.Cause, &sig):
			end.status = statusSignal + int(sig.sig)
		default:
			end.status = statusMonitor
		}
	default:
		end.status = statusMonitor
	}
	return end
}
