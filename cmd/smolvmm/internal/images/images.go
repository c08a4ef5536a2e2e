// Package images has the verbs of the image store: each is a set of flags, a
// help text and a function, which the command joins with its streams.
package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/pflag"

	"github.com/smolvmm/smolvmm/builder"
	"github.com/smolvmm/smolvmm/builder/sets"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/store"
)

// Env is what a verb has of its process.
type Env struct {
	In       io.Reader
	Out, Err io.Writer
	// OutIsTerminal keeps archives off the screen.
	OutIsTerminal bool
	Variable      func(string) (string, bool)

	Store string // the folder of images
	Keys  string // the folder of keys
	Cache string // the folder of the builder's caches, "" where there is none
	// Machines gives the names of machines whose disk is a file; nil: none.
	Machines func(disk string) ([]string, error)
	Progress func(what string, got, total int64)
	Size     func(string) (uint64, error) // reads 512M, 2G
}

// UsageError is the user's to mend.
type UsageError struct{ err error }

func (e *UsageError) Error() string { return e.err.Error() }

// Unwrap gives the error inside.
func (e *UsageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// Verb is one of the command's words.
type Verb struct {
	Name, Summary, Help string
	Files               bool // its words are files, not images
	// New makes the flags and what runs with them.
	New func() (*pflag.FlagSet, func(ctx context.Context, e Env, words []string) error)
}

// Verbs are all of them, in the order of the help.
func Verbs() []Verb {
	return []Verb{
		imagesVerb(), pullVerb(), pushVerb(), tagVerb(), rmiVerb(), imageVerb(), saveVerb(), loadVerb(), pruneVerb(),
		keyVerb(), signVerb(), verifyVerb(),
	}
}

func flagSet(name string) *pflag.FlagSet { return pflag.NewFlagSet(name, pflag.ContinueOnError) }

// resolve finds an image of the store, telling what to do where there is none.
func resolve(s *store.Store, name string) (store.Entry, error) {
	e, err := s.Resolve(name)
	if errors.Is(err, store.ErrNotFound) {
		return e, fmt.Errorf("%w: smolvmm images lists them, smolvmm pull fetches one", err)
	}
	return e, err
}

func parseRef(s string) (spec.Reference, error) {
	r, err := spec.ParseReference(s)
	if err != nil {
		return r, &UsageError{err}
	}
	return r, nil
}

func tagVerb() Verb {
	return Verb{Name: "tag", Summary: "give an image one more name", Help: tagHelp, New: func() (*pflag.FlagSet, func(context.Context, Env, []string) error) {
		return flagSet("tag"), func(ctx context.Context, e Env, words []string) error {
			if len(words) != 2 {
				return usagef("tag: an image and its new name: smolvmm tag web web:1.0")
			}
			to, err := parseRef(words[1])
			if err != nil {
				return err
			}
			if to.Digest != "" {
				return usagef("tag: %s: a new name has no digest", to)
			}
			s, err := store.Open(e.Store)
			if err != nil {
				return err
			}
			if _, err := resolve(s, words[0]); err != nil {
				return err
			}
			_, err = s.Tag(words[0], to)
			return err
		}
	}}
}

func rmiVerb() Verb {
	return Verb{Name: "rmi", Summary: "remove images", Help: rmiHelp, New: func() (*pflag.FlagSet, func(context.Context, Env, []string) error) {
		f := flagSet("rmi")
		force := f.BoolP("force", "f", false, "also with several names, and under a machine")
		return f, func(ctx context.Context, e Env, words []string) error {
			if len(words) == 0 {
				return usagef("rmi: which image? smolvmm images lists them")
			}
			s, err := store.Open(e.Store)
			if err != nil {
				return err
			}
			var all []error
			for _, w := range words {
				if err := ctx.Err(); err != nil {
					return context.Cause(ctx)
				}
				all = append(all, e.remove(ctx, s, w, *force))
			}
			return errors.Join(all...)
		}
	}}
}

func (e Env) remove(ctx context.Context, s *store.Store, name string, force bool) error {
	// A damaged image is removed like any other.
	img, err := s.Resolve(name)
	if errors.Is(err, store.ErrNotFound) || img.ID == "" && err != nil {
		_, err = resolve(s, name)
		return err
	}
	last := len(img.Names) <= 1 || strings.HasPrefix(img.ID, name) || strings.HasPrefix(img.ID, "sha256:"+name)
	if err == nil && last && !force && e.Machines != nil {
		used, err := e.Machines(img.Disk.Path())
		if err != nil {
			return err
		}
		if len(used) > 0 {
			return fmt.Errorf("image %s is the disk of the machine %s: smolvmm rm %s, or rmi -f", name, strings.Join(used, ", "), used[0])
		}
	}
	o := store.RemoveOptions{Force: force}
	if o.Keep, err = e.keep(s); err != nil {
		return err
	}
	gone, err := s.Remove(ctx, name, o)
	for _, n := range gone.Names {
		fmt.Fprintln(e.Out, "untagged", n)
	}
	for _, id := range gone.IDs {
		fmt.Fprintf(e.Out, "removed %s (%s freed)\n", store.ShortID(id), bytesText(gone.Bytes))
	}
	return err
}

func pruneVerb() Verb {
	return Verb{Name: "prune", Summary: "remove images without a name and what nobody needs", Help: pruneHelp, New: func() (*pflag.FlagSet, func(context.Context, Env, []string) error) {
		f := flagSet("prune")
		cache := f.Bool("cache", false, "also what only the build cache needs")
		dry := f.BoolP("dry-run", "n", false, "only tell what would go")
		grace := f.Duration("grace", pruneGrace, "`TIME` that must have passed since something was stored")
		return f, func(ctx context.Context, e Env, words []string) error {
			if len(words) > 0 {
				return usagef("prune: %q: it takes no names; smolvmm rmi does", words[0])
			}
			if *grace < 0 {
				return usagef("-grace %v: must not be negative", *grace)
			}
			s, err := store.Open(e.Store)
			if err != nil {
				return err
			}
			o := store.PruneOptions{Unnamed: true, Grace: *grace, DryRun: *dry}
			if !*cache {
				if o.Keep, err = e.keep(s); err != nil {
					return err
				}
			} else if !*dry && e.Cache != "" {
				// What was unpacked is looked for no more, and unpacked again.
				if err := sets.Forget(filepath.Join(e.Cache, "sets")); err != nil {
					return err
				}
			}
			if o.Used, err = e.used(s); err != nil {
				return err
			}
			gone, err := s.Prune(ctx, o)
			if err != nil {
				return pruneError(err)
			}
			verb := "freed"
			if *dry {
				verb = "would be freed"
			}
			for _, id := range gone.IDs {
				fmt.Fprintln(e.Out, store.ShortID(id))
			}
			fmt.Fprintf(e.Out, "%d images, %d contents: %s %s\n", len(gone.IDs), gone.Blobs, bytesText(gone.Bytes), verb)
			return nil
		}
	}}
}

// keep tells what the builder's caches need of the store's contents.
func (e Env) keep(s *store.Store) (func(digest string) bool, error) {
	if e.Cache == "" {
		return nil, nil
	}
	needed, err := builder.Digests(filepath.Join(e.Cache, "steps"), s.Blobs())
	if err != nil {
		return nil, err
	}
	if err := sets.Referenced(filepath.Join(e.Cache, "sets"), func(d string) { needed[d] = true }); err != nil {
		return nil, err
	}
	return func(d string) bool { return needed[d] }, nil
}

// used tells which images are under a machine.
func (e Env) used(s *store.Store) (func(id string) bool, error) {
	if e.Machines == nil {
		return nil, nil
	}
	all, err := s.List()
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, img := range all {
		if img.Err != nil || len(img.Names) > 0 {
			continue
		}
		names, err := e.Machines(img.Disk.Path())
		if err != nil {
			return nil, err
		}
		ids[img.ID] = len(names) > 0
	}
	return func(id string) bool { return ids[id] }, nil
}

func saveVerb() Verb {
	return Verb{Name: "save", Summary: "write images into an archive", Help: saveHelp, New: func() (*pflag.FlagSet, func(context.Context, Env, []string) error) {
		f := flagSet("save")
		out := f.StringP("output", "o", "", "`FILE` to write, instead of standard output")
		raw := f.Bool("raw", false, "the disk uncompressed, as smolBSD has it")
		noTree := f.Bool("no-tree", false, "without what FROM needs")
		return f, func(ctx context.Context, e Env, words []string) error {
			if len(words) == 0 {
				return usagef("save: which image? smolvmm images lists them")
			}
			if *out == "" && e.OutIsTerminal {
				return usagef("save: an archive does not go to a terminal: -o FILE")
			}
			s, err := store.Open(e.Store)
			if err != nil {
				return err
			}
			var list []store.Entry
			for _, w := range words {
				img, err := resolve(s, w)
				if err != nil {
					return err
				}
				list = append(list, img)
			}
			o := store.PackOptions{Raw: *raw, NoTree: *noTree, Progress: e.Progress}
			if *out == "" {
				return s.Save(ctx, e.Out, list, o)
			}
			return writeWhole(*out, func(w io.Writer) error { return s.Save(ctx, w, list, o) })
		}
	}}
}

// writeWhole writes a file that has its name when it is complete.
func writeWhole(name string, write func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	err = write(f)
	if err == nil {
		err = errors.Join(f.Chmod(0o644), f.Sync())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

func loadVerb() Verb {
	return Verb{Name: "load", Summary: "take images out of an archive", Help: loadHelp, Files: true, New: func() (*pflag.FlagSet, func(context.Context, Env, []string) error) {
		f := flagSet("load")
		in := f.StringP("input", "i", "", "`FILE` to read, instead of standard input")
		keys := f.StringArray("verify", nil, "`KEY` that must have signed the images; repeatable")
		noTree := f.Bool("no-tree", false, "without what FROM needs")
		size := f.String("max-size", "", "`SIZE` that a disk may have (default 64G)")
		return f, func(ctx context.Context, e Env, words []string) error {
			if len(words) == 1 && *in == "" {
				*in, words = words[0], nil
			}
			if len(words) > 0 {
				return usagef("load: one archive at a time")
			}
			o := store.LoadOptions{NoTree: *noTree, Progress: e.Progress}
			var err error
			if o.MaxDisk, err = e.maxDisk(*size); err != nil {
				return err
			}
			if o.Keys, err = e.publicKeys(*keys); err != nil {
				return err
			}
			r := e.In
			if *in != "" && *in != "-" {
				file, err := os.Open(*in)
				if err != nil {
					return usagef("load: %w", err)
				}
				defer file.Close()
				r = file
			}
			s, err := store.Open(e.Store)
			if err != nil {
				return err
			}
			all, err := s.Load(ctx, r, o)
			for _, img := range all {
				fmt.Fprintln(e.Out, "loaded", img.Name(), store.ShortID(img.ID))
			}
			if err != nil {
				from := "standard input"
				if *in != "" {
					from = *in
				}
				return fmt.Errorf("load: %s: %w", from, err)
			}
			return nil
		}
	}}
}

func (e Env) maxDisk(size string) (int64, error) {
	if size == "" {
		return 0, nil
	}
	n, err := e.Size(size)
	if err != nil || n == 0 || n > spec.MaxDisk {
		return 0, usagef("-max-size %q: give a size like 512M or 100G, at most 1T", size)
	}
	return int64(n), nil
}
