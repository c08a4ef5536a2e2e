package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/network"
	"github.com/smolvmm/smolvmm/vmm"
)

// namedMachine is what a machine with a name has besides: its place in the list
// of machines, a log of its console, and somebody who waits for it to be ready. It is an
// attachment.
type namedMachine struct {
	claim    *machines.Claim
	ready    readiness
	patience time.Duration // until ready, for who waits
	parent   *parent
	log      *slog.Logger
	onRun    func()      // the guest is about to run
	agent    *guestAgent // in the guest, if it is one that has it

	once   sync.Once
	cancel context.CancelCauseFunc
	timer  *time.Timer
	waits  sync.WaitGroup
	noted  bool // that the machine has ended
}

// Attach puts the log behind the console, and ears to where the guest says that
// it is ready.
func (n *namedMachine) Attach(cfg *vmm.Config, con *cli.Console, cancel context.CancelCauseFunc) {
	n.cancel = cancel
	cfg.Confine.Log = true
	t := &tee{w: con.Out.W, log: n.claim.Console.Stream(machines.Console)}
	if n.ready.kind == "console" {
		m := &matcher{re: n.ready.regex}
		t.look = func(p []byte) bool {
			line, ok := m.write(p)
			if ok {
				n.isReady(fmt.Sprintf("console: %q", line))
			}
			return ok
		}
	}
	con.Out.W = t
	cfg.Marked = func(mark byte) {
		if n.ready.says(mark) {
			// Not on the vCPU's time, and in a goroutine only once.
			n.once.Do(func() { n.waits.Go(func() { n.told(fmt.Sprintf("mark %d", mark)) }) })
		}
	}
	if n.claim.Spec.Remove {
		data, run := n.claim.Store().Folders()
		con.Job.Machine = &cli.KeptMachine{Name: n.claim.Spec.Name, Data: data, Runtime: run}
	}
	if n.parent != nil {
		n.parent.onGone(func() { cancel(cli.SignalError{Sig: sigHangup, Why: "who started it has gone before it was ready"}) })
	}
}

// tee writes to the console and to the log.
type tee struct {
	w    io.Writer
	log  io.Writer
	look func(p []byte) (done bool)
}

func (t *tee) Write(p []byte) (int, error) {
	_, _ = t.log.Write(p)
	if t.look != nil && t.look(p) {
		t.look = nil
	}
	return t.w.Write(p)
}

// Running says that the guest is about to run.
func (n *namedMachine) Running(ctx context.Context, m *vmm.Machine, nw *network.Network) error {
	n.onRun()
	if err := n.claim.Note(machines.Record{State: machines.Running, Addrs: nw.Addrs()}); err != nil {
		return err
	}
	if n.parent != nil && n.patience > 0 {
		n.timer = time.AfterFunc(n.patience, func() {
			// The first of being ready and being late counts.
			n.once.Do(func() {
				n.cancel(fmt.Errorf("%w: --ready %s did not come in %v", cli.ErrLate, n.ready.text, n.patience))
			})
		})
	}
	switch n.ready.kind {
	case "start":
		n.isReady("start")
	case "port":
		n.whenAnswers(ctx, fmt.Sprintf("port %d answers", n.ready.port), func() error { return nw.Answers(ctx, n.ready.port) })
	case "agent":
		n.agent.reach(m, nw)
		n.whenAnswers(ctx, "the agent answers", func() error { return n.agent.answers(ctx) })
	}
	return nil
}

// whenAnswers makes the guest ready when ask returns; its error ends the machine.
func (n *namedMachine) whenAnswers(ctx context.Context, why string, ask func() error) {
	n.waits.Go(func() {
		if err := ask(); err == nil {
			n.isReady(why)
		} else if ctx.Err() == nil {
			n.cancel(fmt.Errorf("%w: %w", cli.ErrLate, err))
		}
	})
}

// isReady says that the guest is ready, and why; the first counts.
func (n *namedMachine) isReady(why string) { n.once.Do(func() { n.told(why) }) }

func (n *namedMachine) told(why string) {
	if err := n.claim.Note(machines.Record{State: machines.Ready, Text: why}); err != nil {
		n.log.Warn("ready", "err", err)
	}
	if n.timer != nil {
		n.timer.Stop()
	}
	n.parent.ready(n.claim.Spec.Name)
}

// Ended writes down how the guest ended. The machine is still there.
func (n *namedMachine) Ended(exit vmm.Exit, err error) {
	n.cancel(nil) // who waits for a port need not any more
	if err == nil {
		err = cli.StatusOf(exit)
	}
	n.note(cli.EndOf(exit, nil), err)
}

func (n *namedMachine) note(text string, err error) {
	r := machines.Record{State: machines.Ended, Text: text, Status: cli.StatusFor(err)}
	if err != nil && text == "" {
		r.Text = cli.OneLine(err.Error())
	}
	if err := n.claim.Note(r); err != nil {
		n.log.Warn("the machine's end", "err", err)
	}
	n.noted = true
}

// Release gives the name up. err is how the whole run ended.
func (n *namedMachine) Release(err error) {
	if n.timer != nil {
		n.timer.Stop()
	}
	n.waits.Wait()
	if !n.noted {
		n.note("", err)
	}
	n.claim.Release()
}
