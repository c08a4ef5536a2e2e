// Command net measures smolvmm's user network beside QEMU's (libslirp) and
// passt, with the same guest, in the same run and in turn. docs/performance.md
// tells what the figures mean.
//
//	go run ./bench/net
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/smolvmm/smolvmm/bench/internal/demoguest"
	"github.com/smolvmm/smolvmm/bench/suite/network"
)

type options struct {
	rounds                int
	megabytes             int
	count                 int
	smolvmm, qemu, passt  string
	only, loads, jsonFile string
}

const usageText = `Measure the network of smolvmm, QEMU's user network and passt with the same guest, in turn.

  go run ./bench/net [flags]

`

func (o *options) parse(args []string, w io.Writer) error {
	f := flag.NewFlagSet("net", flag.ContinueOnError)
	f.SetOutput(w)
	f.IntVar(&o.rounds, "n", 10, "`rounds`; each starts every monitor once under every load")
	f.IntVar(&o.megabytes, "mb", 200, "`MB` (10^6 bytes) of a stream")
	f.IntVar(&o.count, "count", 5000, "round `trips`, and a tenth as many connections")
	f.StringVar(&o.smolvmm, "smolvmm", "", "measure this smolvmm `file` instead of building one")
	f.StringVar(&o.qemu, "qemu", "qemu-system-x86_64", "QEMU's `program`")
	f.StringVar(&o.passt, "passt", "passt", "passt's `program`")
	f.StringVar(&o.only, "only", "", "measure these `names` only, comma-separated, as the table has them")
	f.StringVar(&o.loads, "loads", "up,down,rr,conn", "`loads`, comma-separated")
	f.StringVar(&o.jsonFile, "json", "", "write every sample to this `file`")
	f.Usage = func() {
		fmt.Fprint(w, usageText)
		f.PrintDefaults()
	}
	if err := f.Parse(args); err != nil {
		return err
	}
	switch {
	case f.NArg() > 0:
		return fmt.Errorf("%q is not a flag", f.Arg(0))
	case o.rounds < 1 || o.rounds > 1000:
		return fmt.Errorf("-n %d: must be between 1 and 1000", o.rounds)
	case o.megabytes < 1 || o.megabytes > 100_000:
		return fmt.Errorf("-mb %d: must be between 1 and 100000", o.megabytes)
	case o.count < 10 || o.count > 1_000_000:
		return fmt.Errorf("-count %d: must be between 10 and 1000000", o.count)
	}
	for _, k := range strings.Split(o.loads, ",") {
		if !slices.Contains(network.Kinds(), network.Kind(k)) {
			return fmt.Errorf("-loads: %q is none of up, down, rr, conn", k)
		}
	}
	return nil
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run gives 2 for bad flags and 1 for any failure, smolvmm's among them.
func run(args []string, stdout, stderr io.Writer) int {
	var o options
	if err := o.parse(args, stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		fmt.Fprintf(stderr, "net: %v\n", err)
		return 2
	}
	if err := measure(&o, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "net: %v\n", err)
		return 1
	}
	return 0
}

func measure(o *options, stdout, stderr io.Writer) error {
	dir, err := os.MkdirTemp("", "smolvmm-net-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := o.smolvmm
	if program == "" {
		program = filepath.Join(dir, "smolvmm")
		c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, "github.com/smolvmm/smolvmm/cmd/smolvmm")
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("go build: %w\n%s", err, out)
		}
	}
	kernel := filepath.Join(dir, "guest.elf")
	if err := demoguest.Write(kernel); err != nil {
		return err
	}
	all, absent := network.Subjects(program, o.qemu, o.passt)
	for _, a := range absent {
		fmt.Fprintf(stderr, "net: not measured: %s\n", a)
	}
	if o.only != "" {
		names := strings.Split(o.only, ",")
		all = slices.DeleteFunc(all, func(s network.Subject) bool { return !slices.Contains(names, s.Name) })
	}
	if len(all) == 0 {
		return errors.New("nothing to measure")
	}
	var done []network.Series
	for _, l := range network.List(strings.Split(o.loads, ","), o.megabytes, o.count) {
		done = append(done, network.InTurn(context.Background(), l, all, o.rounds, kernel, stderr, nil)...)
	}
	network.Markdown(stdout, done)
	if o.jsonFile != "" {
		b, err := json.MarshalIndent(done, "", " ")
		if err == nil {
			err = os.WriteFile(o.jsonFile, append(b, '\n'), 0o644)
		}
		if err != nil {
			return err
		}
	}
	for _, s := range done {
		if s.Subject == network.Ours && s.Failed > 0 {
			return fmt.Errorf("%d runs of smolvmm failed, the first: %s", s.Failed, s.Failure)
		}
	}
	return nil
}
