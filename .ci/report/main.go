// Command report turns `go test -json` on standard input into what a person
// wants to read: the closing line of every package, the whole output of what
// failed, and what was skipped. It fails when a test failed or when none ran.
//
//	go test -json … | report -state FILE -log FILE    one step
//	report -state FILE -left                          what no step ran, a line each
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"
)

// event is a line of test2json (go doc test2json), or of a build.
type event struct {
	Action, Package, Test, Output, FailedBuild string
}

// state is what the steps so far have seen; a test that one step skips may run
// in another.
type state struct {
	Passed  map[string]bool
	Skipped map[string]string // why
}

func main() {
	file := flag.String("state", "", "file that the steps share")
	logFile := flag.String("log", "", "file for the whole output")
	left := flag.Bool("left", false, "say what no step ran")
	flag.Parse()
	if err := run(*file, *logFile, *left); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(file, logFile string, left bool) error {
	s := state{Passed: map[string]bool{}, Skipped: map[string]string{}}
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &s)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if left {
		s.left(os.Stdout)
		return nil
	}
	log, err := os.Create(logFile)
	if err != nil {
		return err
	}
	failure := s.read(os.Stdin, os.Stdout, log)
	b, err = json.Marshal(s)
	return errors.Join(failure, err, log.Close(), os.WriteFile(file, b, 0o644))
}

// read takes one step in.
func (s *state) read(in io.Reader, out, log io.Writer) error {
	passed, failed, skipped, bad := 0, 0, 0, false
	said := map[string]string{} // output by package and test
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadString('\n')
		if line == "" && err != nil {
			break
		}
		var e event
		if json.Unmarshal([]byte(line), &e) != nil || e.Action == "" {
			// Not from a test: go's own words.
			fmt.Fprint(out, line)
			fmt.Fprint(log, line)
			continue
		}
		name := strings.TrimPrefix(e.Package, "github.com/smolvmm/smolvmm/")
		if e.Test != "" {
			name += " " + e.Test
		}
		switch e.Action {
		case "output":
			fmt.Fprint(log, e.Output)
			said[name] += e.Output
			if e.Test == "" && closing(e.Output) {
				fmt.Fprint(out, e.Output)
			}
		case "build-output":
			fmt.Fprint(log, e.Output)
			fmt.Fprint(out, e.Output)
		case "pass":
			if e.Test != "" {
				passed++
				s.Passed[name] = true
			}
			delete(said, name)
		case "skip":
			if e.Test != "" {
				skipped++
				s.Skipped[name] = reason(said[name])
				fmt.Fprintf(out, "    skipped: %s: %s\n", name, s.Skipped[name])
			}
			delete(said, name)
		case "fail":
			if e.Test != "" || e.FailedBuild != "" {
				failed++
			}
			bad = true
			fmt.Fprintf(out, "---- FAILED: %s\n", name)
			for line := range strings.Lines(said[name]) {
				if e.Test != "" || !closing(line) { // those have been shown
					fmt.Fprint(out, line)
				}
			}
			delete(said, name)
		}
	}
	fmt.Fprintf(out, "%d tests passed, %d failed, %d skipped\n", passed, failed, skipped)
	switch {
	case bad:
		return errors.New("tests failed")
	case passed == 0:
		return errors.New("no test ran: a step that tests nothing is a mistake of its own")
	}
	return nil
}

// closing says whether a package's own line is worth showing: its result. What
// has no tests says nothing.
func closing(line string) bool {
	return strings.HasPrefix(line, "ok ") || strings.HasPrefix(line, "FAIL") || strings.HasPrefix(line, "panic:") ||
		strings.Contains(line, "[no tests to run]")
}

// reason is what a test gave t.Skip: the last line before "--- SKIP", less the
// place in the source.
func reason(said string) string {
	why := "no reason given"
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---") {
			continue
		}
		if _, after, ok := strings.Cut(line, ".go:"); ok {
			_, line, _ = strings.Cut(after, ": ")
		}
		why = line
	}
	return why
}

// left says what was skipped wherever it was tried.
func (s *state) left(w io.Writer) {
	for _, name := range slices.Sorted(maps.Keys(s.Skipped)) {
		if !s.Passed[name] {
			fmt.Fprintf(w, "%s (%s)\n", name, s.Skipped[name])
		}
	}
}
