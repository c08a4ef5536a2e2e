package suite

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
	"github.com/smolvmm/smolvmm/bench/suite/build"
)

// bytesPerFile is the mean of the files in the folder that images are made of.
const bytesPerFile = 20_000

// buildPart makes an image of a folder with smolvmm build and with makefs in turn,
// and with smolvmm build what it has built before.
func (r *runner) buildPart(ctx context.Context) error {
	dir := filepath.Join(r.dir, "build")
	tree := filepath.Join(dir, "context", "tree")
	bytes, err := build.MakeFolder(tree, r.Files, int64(r.Files)*bytesPerFile)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "context", "Dockerfile"), []byte("FROM scratch\nCOPY tree /tree\n"), 0o644); err != nil {
		return err
	}
	env := []string{"XDG_DATA_HOME=" + filepath.Join(dir, "data"), "XDG_CACHE_HOME=" + filepath.Join(dir, "cache")}
	program := r.Program
	// smolvmm becomes the program beside it for this; what is measured is that one, since its memory at the peak is
	// read as a process ends that has been the same program all along.
	if full := r.Program + "-full"; isProgram(full) {
		program = full
	}
	argv := func(words ...string) []string {
		return append([]string{program, "build", "--progress", "quiet"}, words...)
	}
	subjects := []*build.Subject{{Name: figures.Ours, Env: env, Argv: func(img string) []string {
		return argv("--no-cache", "-o", img, filepath.Join(dir, "context"))
	}}}
	makefs, err := exec.LookPath("makefs")
	if err != nil {
		makefs, err = exec.LookPath("/usr/sbin/makefs") // Debian has it outside a user's PATH
	}
	if err == nil {
		subjects = append(subjects, &build.Subject{Name: "makefs", Argv: func(img string) []string {
			return []string{makefs, "-t", "ffs", "-o", "version=2", img, tree}
		}})
	} else {
		r.absent("makefs: not on PATH (Debian's package makefs)")
	}
	for round := range r.rounds + 1 {
		for i := range subjects {
			s := subjects[(i+round)%len(subjects)]
			if err := s.Run(ctx, filepath.Join(dir, "disk.img"), bytes, round > 0); err != nil {
				return fmt.Errorf("%s: %w", s.Name, err)
			}
		}
		r.progress("build, an image of a folder", round+1, r.rounds+1)
	}
	again := figures.Series{Subject: figures.Ours}
	for round := range r.rounds + 1 {
		m, err := build.Traced(ctx, argv("-t", "again", filepath.Join(dir, "context")), env...)
		if err != nil {
			return fmt.Errorf("smolvmm build, of what is built: %w", err)
		}
		if round > 0 {
			again.Values = append(again.Values, float64(m.Wall)/1e6)
		}
		r.progress("build, unchanged", round+1, r.rounds+1)
	}
	what := fmt.Sprintf("an image of %d files with %.1f MB", r.Files, float64(bytes)/1e6)
	for _, f := range []struct {
		id, what, unit string
		of             func(*build.Subject) []float64
	}{
		{"build/wall", "time", "ms", func(s *build.Subject) []float64 { return s.Wall }},
		{"build/cpu", "processor time", "ms", func(s *build.Subject) []float64 { return s.CPU }},
		{"build/rss", "memory at the peak", "MiB", func(s *build.Subject) []float64 { return s.RSS }},
		{"build/disk", "what the image takes on the host's disk", "MB", func(s *build.Subject) []float64 { return s.Disk }},
	} {
		fig := figures.Figure{ID: f.id, What: what + ": " + f.what, Unit: f.unit, Better: figures.Less}
		for _, s := range subjects {
			fig.Series = append(fig.Series, figures.Series{Subject: s.Name, Values: f.of(s)})
		}
		r.set.Add(fig)
	}
	r.set.Add(figures.Figure{ID: "build/unchanged", What: "smolvmm build of what it has built before", Unit: "ms", Better: figures.Less, Series: []figures.Series{again}})
	r.set.Notes = append(r.set.Notes, "build: smolvmm build reads a Dockerfile, copies and hashes the folder and adds smolinit; makefs makes the file system alone")
	return os.RemoveAll(dir)
}

func isProgram(file string) bool {
	_, err := exec.LookPath(file)
	return err == nil
}
