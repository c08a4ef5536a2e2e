package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/machines"
	"github.com/smolvmm/smolvmm/vmm/agent"
	"github.com/smolvmm/smolvmm/vmm/client"
)

const cpHelp = `smolvmm cp copies files between this host and a machine that runs.

Usage: smolvmm cp [flags] NAME:PATH PATH
       smolvmm cp [flags] PATH NAME:PATH

  -L, --follow         follow a symbolic link named on the command line
  -q, --quiet          say nothing of what was left out

A folder is copied with all that is in it, into a folder that is there or under
the name given. Modes, times, links and holes are kept; owners and set-user-ID
bits are not, and devices, sockets and pipes are left out. What comes from a
guest is written nowhere but at PATH. A PATH here with a colon begins with ./
`

// cpFlags are the flags of cp.
type cpFlags struct{ follow, quiet, help bool }

func (c *cpFlags) set() *pflag.FlagSet {
	f := pflag.NewFlagSet("cp", pflag.ContinueOnError)
	f.BoolVarP(&c.follow, "follow", "L", false, "follow a symbolic link named on the command line")
	f.BoolVarP(&c.quiet, "quiet", "q", false, "say nothing of what was left out")
	f.BoolVarP(&c.help, "help", "h", false, "show the help")
	return f
}

// remote splits NAME:PATH; what is no machine's name before the colon, or has a
// slash there, is a path of this host.
func remote(arg string) (name, path string, ok bool) {
	name, path, ok = strings.Cut(arg, ":")
	if !ok || machines.CheckName(name) != nil {
		return "", arg, false
	}
	return name, path, true
}

// cpCommand is `smolvmm cp`.
func cpCommand(args []string, s cli.Streams) error {
	var c cpFlags
	f := c.set()
	flags, words, err := cli.SplitWords(f, args)
	if err == nil {
		_, err = cli.Parse(f, flags)
	}
	switch {
	case err != nil:
		return err
	case c.help:
		fmt.Fprint(s.Out, cpHelp)
		return nil
	case len(words) != 2:
		return cli.Usagef("cp: two paths are needed, one of them NAME:PATH (smolvmm help cp)")
	}
	from, fromPath, out := remote(words[0])
	to, toPath, in := remote(words[1])
	switch {
	case out && in:
		return cli.Usagef("cp: %s and %s: one of them must be on this host", words[0], words[1])
	case !out && !in:
		return cli.Usagef("cp: neither %s nor %s is NAME:PATH of a machine", words[0], words[1])
	case out && fromPath == "" || in && toPath == "":
		return cli.Usagef("cp: a path in the machine is needed behind the colon")
	}
	store, m, err := liveMachine(from+to, s)
	if err != nil {
		return err
	}
	// A signal ends the copy, and what is half there goes.
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case sig := <-signals:
			cancel(cli.SignalError{Sig: sig.(syscall.Signal)})
		case <-done:
		}
	}()
	var place agent.Place
	if out {
		if place, err = agent.PlaceOf(toPath); err != nil {
			return cli.Usagef("cp: %w", err)
		}
	} else if _, err := os.Lstat(fromPath); err != nil {
		return cli.Usagef("cp: %w", err)
	}
	stream, err := client.New(m.Spec.Socket).Agent(ctx)
	if err != nil {
		return fmt.Errorf("machine %s: %w", m.Spec.Name, unwrapped(err))
	}
	defer stream.Close()
	if err := store.Audit(m, machines.AuditCopy, words[0]+" to "+words[1]); err != nil {
		return err
	}
	if out {
		_, err = agent.Fetch(ctx, stream, fromPath, c.follow, place)
	} else {
		var skipped agent.Skipped
		skipped, err = agent.Store(ctx, stream, fromPath, c.follow, toPath)
		if err == nil && len(skipped) > 0 && !c.quiet {
			cli.Complain(s, fmt.Errorf("cp: left out %s%s: neither file, folder nor link", skipped[0], andMore(len(skipped))))
		}
	}
	if err != nil {
		return execError(m.Spec.Name, err)
	}
	return nil
}

func andMore(n int) string {
	if n == 1 {
		return ""
	}
	return fmt.Sprintf(" and %d more", n-1)
}
