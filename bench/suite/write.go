package suite

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// The files that WriteFiles makes besides the plots.
const (
	FileJSON     = "results.json"
	FileCSV      = "results.csv"
	FileMarkdown = "results.md"
)

// WriteFiles puts results into a folder, which is made if it is not there: JSON,
// CSV, a page of tables and the plots. It gives the names, in order.
func WriteFiles(dir string, s *Results) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	plots, ids := s.Plots()
	var doc, table, page bytes.Buffer
	if err := errors.Join(s.JSON(&doc), s.CSV(&table)); err != nil {
		return nil, err
	}
	s.Markdown(&page, ids)
	plots[FileJSON], plots[FileCSV], plots[FileMarkdown] = doc.Bytes(), table.Bytes(), page.Bytes()
	names := slices.Sorted(maps.Keys(plots))
	for _, name := range names {
		if err := writeFile(filepath.Join(dir, name), plots[name]); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// writeFile makes a file appear under its name only when it is complete.
func writeFile(name string, b []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), ".bench-*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

// pacers are the programs by whose figures the machine's own pace is told, the
// best first. Not the floor: it is too short to pace what takes longer.
func pacers() []string {
	return []string{"QEMU microvm", "QEMU", "QEMU user", "makefs", "floor (C)"}
}

// Compare holds two documents against each other and writes what has changed. It
// gives how many of smolvmm's figures got significantly slower, by more than
// tolerance (0.05: a twentieth).
func Compare(before, after string, tolerance float64, w io.Writer) (slowdowns int, err error) {
	var sets [2]*Results
	for i, name := range []string{before, after} {
		f, err := os.Open(name)
		if err != nil {
			var p *fs.PathError
			if errors.As(err, &p) {
				err = p.Err
			}
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		sets[i], err = figures.Read(f)
		f.Close()
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
	}
	c := figures.Compare(sets[0], sets[1], pacers(), tolerance)
	if !slices.ContainsFunc(c.Changes, func(x figures.Change) bool { return x.Slower != (stats.Interval{}) }) {
		return 0, fmt.Errorf("%s and %s have no figure of smolvmm's in common", before, after)
	}
	c.Markdown(w)
	return c.Slowdowns(), nil
}
