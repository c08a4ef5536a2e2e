package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
	"github.com/smolvmm/smolvmm/vmm/client"
)

const killHelp = `smolvmm kill ends machines as if their power were cut.

Usage: smolvmm kill NAME…
`

const rmHelp = `smolvmm rm removes machines that have ended: overlay, log, name.

Usage: smolvmm rm [-f] NAME…

  -f, --force          kill those that run; one that is not there is no error
`

type rmFlags struct{ force, help bool }

func (r *rmFlags) set() *pflag.FlagSet {
	f := pflag.NewFlagSet("rm", pflag.ContinueOnError)
	f.BoolVarP(&r.force, "force", "f", false, "kill those that run")
	f.BoolVarP(&r.help, "help", "h", false, "show the help")
	return f
}

const stopHelp = `smolvmm stop asks machines to shut down, waits, and ends them.

Usage: smolvmm stop [-t TIME] NAME…

  -t, --time TIME      how long the guest may take (default 10s)

A guest with nobody in it who could be asked is ended at once, as with kill:
its disks are closed in order, what it had not written is lost.
`

type stopFlags struct {
	grace time.Duration
	help  bool
}

func (o *stopFlags) set() *pflag.FlagSet {
	f := pflag.NewFlagSet("stop", pflag.ContinueOnError)
	o.grace = 10 * time.Second
	f.VarP((*cli.Duration)(&o.grace), "time", "t", "`TIME` that the guest may take")
	f.BoolVarP(&o.help, "help", "h", false, "show the help")
	return f
}

const cleanupHelp = `smolvmm cleanup removes what dead machines left behind.

Usage: smolvmm cleanup [--all]

That is machines whose process was killed, those run with --rm that are still
there, and sockets and folders that belong to none.

      --all            every machine that has ended
`

type cleanupFlags struct{ all, help bool }

func (c *cleanupFlags) set() *pflag.FlagSet {
	f := pflag.NewFlagSet("cleanup", pflag.ContinueOnError)
	f.BoolVar(&c.all, "all", false, "every machine that has ended")
	f.BoolVarP(&c.help, "help", "h", false, "show the help")
	return f
}

func rmCommand(args []string, s cli.Streams) error {
	var r rmFlags
	names, store, done, err := verb(r.set(), args, rmHelp, 1, many, s)
	if done || err != nil {
		return err
	}
	return each(names, s, func(name string) error {
		m, err := store.Get(name)
		if errors.Is(err, machines.ErrNone) && r.force {
			return nil
		}
		if err != nil {
			return err
		}
		if r.force && m.Alive {
			if err := end(store, m, 0, s); err != nil {
				return err
			}
		}
		err = store.Remove(name)
		if errors.Is(err, machines.ErrNone) && r.force {
			return nil // it was to go at its end
		}
		return errors.Join(err, audit(store, m, machines.AuditRemove, "smolvmm rm", err))
	})
}

// audit writes a line for what was done, if it was.
func audit(store *machines.Store, m *machines.Machine, event, reason string, err error) error {
	if err != nil {
		return nil
	}
	return store.Audit(m, event, reason)
}

func stopCommand(args []string, s cli.Streams) error {
	var o stopFlags
	names, store, done, err := verb(o.set(), args, stopHelp, 1, many, s)
	if done || err != nil {
		return err
	}
	return endEach(names, store, o.grace, s)
}

func killCommand(args []string, s cli.Streams) error {
	names, store, done, err := verb(helpOnly("kill")(), args, killHelp, 1, many, s)
	if done || err != nil {
		return err
	}
	return endEach(names, store, 0, s)
}

// endEach ends machines side by side, as each may take its whole time to end, and
// tells of them in the order in which they were named.
func endEach(names []string, store *machines.Store, grace time.Duration, s cli.Streams) error {
	ends := make(map[string]func() error, len(names))
	turn := make(chan struct{}, endsAtOnce)
	for _, name := range names {
		if ends[name] != nil {
			continue
		}
		ended := make(chan error, 1)
		go func() {
			turn <- struct{}{}
			ended <- endOne(name, store, grace, s)
			<-turn
		}()
		ends[name] = sync.OnceValue(func() error { return <-ended })
	}
	return each(names, s, func(name string) error {
		if err := ends[name](); err != nil {
			return err
		}
		fmt.Fprintln(s.Out, name)
		return nil
	})
}

// endsAtOnce bounds the open sockets and locks.
const endsAtOnce = 64

func endOne(name string, store *machines.Store, grace time.Duration, s cli.Streams) error {
	m, err := store.Get(name)
	if err != nil {
		return err
	}
	if !m.Alive {
		return cli.Usagef("machine %s has ended already", name)
	}
	return end(store, m, grace, s)
}

// How long a machine's process may take for its own end before it is killed: its
// disks are flushed and its last words written.
const (
	endPatience   = 5 * time.Second
	killPatience  = 10 * time.Second
	goingPatience = 500 * time.Millisecond // for one that went while it was asked
)

// end ends a machine: it is asked, if there is time, then its power is cut, and at
// last its process is killed. It returns when the process has gone.
func end(store *machines.Store, m *machines.Machine, grace time.Duration, s cli.Streams) error {
	event, reason := machines.AuditStop, fmt.Sprintf("smolvmm stop, %v", grace)
	if grace == 0 {
		event, reason = machines.AuditKill, "smolvmm kill"
	}
	if err := store.Audit(m, event, reason); err != nil {
		return err
	}
	gone := make(chan error, 1)
	go func() { gone <- store.Wait(m.Spec.Name) }()
	if err := ask(m, grace); err != nil {
		// One that has gone is what was asked for; one that has no socket yet, or
		// does not answer, hears a signal.
		if isGone(gone, goingPatience) {
			return nil
		}
		grace = 0
		if err := store.Signal(m, unix.SIGTERM); err != nil {
			return err
		}
	}
	if isGone(gone, grace+endPatience) {
		return nil
	}
	cli.Complain(s, fmt.Errorf("machine %s does not end: it is killed", m.Spec.Name))
	if err := store.Signal(m, unix.SIGKILL); err != nil {
		return err
	}
	if isGone(gone, killPatience) {
		return nil
	}
	return fmt.Errorf("machine %s: process %d does not end though it was killed", m.Spec.Name, m.PID)
}

// isGone waits for the process's end, so long at most.
func isGone(gone <-chan error, patience time.Duration) bool {
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-gone:
		return true
	case <-t.C:
		return false
	}
}

func cleanupCommand(args []string, s cli.Streams) error {
	var c cleanupFlags
	_, store, done, err := verb(c.set(), args, cleanupHelp, 0, 0, s)
	if done || err != nil {
		return err
	}
	removed, err := store.Cleanup(c.all)
	for _, name := range removed {
		fmt.Fprintln(s.Out, name)
	}
	return err
}

// askPatience is how long a machine's process may take for an answer.
const askPatience = 2 * time.Second

// ask asks a machine's process to end the machine within grace; without any it is
// to end it at once. It returns when that is under way.
func ask(m *machines.Machine, grace time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), askPatience)
	defer cancel()
	c := client.New(m.Spec.Socket)
	if grace == 0 {
		return c.Kill(ctx)
	}
	_, err := c.Stop(ctx, grace)
	return err
}
