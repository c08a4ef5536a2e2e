package boot

import (
	_ "embed"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

//go:embed floorc/floor.c
var floorC []byte

// Build is a further smolvmm binary to measure beside the one of this tree.
type Build struct{ Name, Path string }

// File is its name in the folder of programs.
func (b Build) File() string { return "extra-" + filepath.Base(b.Name) }

// ParseBuild reads NAME=PATH.
func ParseBuild(s string) (Build, error) {
	name, path, ok := strings.Cut(s, "=")
	if !ok || name == "" || path == "" || strings.Contains(name, "/") {
		return Build{}, fmt.Errorf("-also %q: want NAME=PATH", s)
	}
	return Build{name, path}, nil
}

// BuildAll fills dir with what is measured. Peers that cannot be built are left out, with a note.
func BuildAll(dir, smolvmm string, extra []Build, notes io.Writer) error {
	p := Programs{dir}
	goBuild := func(name, pkg string) error {
		c := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", p.Path(name), pkg)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("go build %s: %w\n%s", pkg, err, out)
		}
		return nil
	}
	if smolvmm != "" {
		extra = append(extra, Build{"smolvmm", smolvmm})
	} else if err := goBuild("smolvmm", "github.com/smolvmm/smolvmm/cmd/smolvmm"); err != nil {
		return err
	}
	if err := goBuild("floor-go", "github.com/smolvmm/smolvmm/bench/boot/floor"); err != nil {
		return err
	}
	for _, b := range extra {
		to := b.File()
		if b.Name == "smolvmm" {
			to = b.Name
		}
		if err := copyFile(p.Path(to), b.Path, 0o755); err != nil {
			return err
		}
	}
	if err := goBuild("gokvm", "github.com/bobuhiro11/gokvm"); err != nil {
		fmt.Fprintf(notes, "boot: no gokvm: %v\n", err)
	}
	if err := buildFloorC(p.Path("floor-c")); err != nil {
		fmt.Fprintf(notes, "boot: no floor in C, the one in Go serves alone: %v\n", err)
	}
	return nil
}

// buildFloorC compiles the C floor. Static: a dynamic linker is no part of a floor.
func buildFloorC(to string) error {
	c := exec.Command("gcc", "-O2", "-static", "-x", "c", "-o", to, "-")
	c.Stdin = strings.NewReader(string(floorC))
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%w %s", err, out)
	}
	return nil
}

func copyFile(to, from string, mode os.FileMode) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, mode)
}
