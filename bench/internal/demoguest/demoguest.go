// Package demoguest reads what the demo guest prints of its work.
package demoguest

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/smolvmm/smolvmm/vmm/demo"
)

// Write puts the guest's kernel into a file.
func Write(path string) error {
	k := demo.Kernel()
	image, err := io.ReadAll(io.NewSectionReader(k, 0, k.Size()))
	if err != nil {
		return err
	}
	return os.WriteFile(path, image, 0o644)
}

// Report is the guest's line on what it was told to do, "" if it printed none.
func Report(console []byte, mode string) string { return line(console, "demo: ok "+mode+" ") }

// Failure is the first line in which the guest says that something failed.
func Failure(console []byte) string { return line(console, "demo: FAIL ") }

func line(console []byte, beginning string) string {
	_, rest, ok := strings.Cut(string(console), beginning)
	if !ok {
		return ""
	}
	return beginning + rest[:len(rest)-len(strings.TrimLeftFunc(rest, func(r rune) bool { return r != '\r' && r != '\n' }))]
}

// Field is a number of a report, by its name.
func Field(report, name string) (float64, error) {
	for _, word := range strings.Fields(report) {
		if v, ok := strings.CutPrefix(word, name+"="); ok {
			f, err := strconv.ParseFloat(v, 64)
			if err != nil {
				return 0, fmt.Errorf("%s is no number in %q", name, report)
			}
			return f, nil
		}
	}
	return 0, fmt.Errorf("no %s in %q", name, report)
}
