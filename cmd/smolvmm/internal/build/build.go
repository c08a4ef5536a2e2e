// Package build is `smolvmm build`: it joins the builder with the image store,
// NetBSD's sets, u-root's commands, and machines for RUN with their network.
package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/builder"
	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/dialect"
	"github.com/smolvmm/smolvmm/builder/fetch"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/store"
	"github.com/smolvmm/smolvmm/builder/toolbox"
	"github.com/smolvmm/smolvmm/builder/tree"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/network"
)

// Options are the flags of `smolvmm build` as typed, and what the command has of
// its process.
type Options struct {
	Context   string   // the folder; "" is the one that the command was started in
	File      string   // -f; "-" is In
	Tags      []string // -t
	Args      []string // --build-arg K=V or K
	Target    string
	NoCache   bool
	Secrets   []string // NAME, NAME=@FILE or Docker's id=NAME,src=FILE
	Timeout   time.Duration
	Progress  string // "auto", "plain" or "quiet"
	Output    string // -o: an image file and nothing in the store
	Size      int64  // bytes
	Go        string // --go: a package instead of a Dockerfile
	Sets      string // --sets: a folder with sets
	Mirror    string
	Packages  string // --packages: a mirror of pkgsrc's
	Kernel    string // for RUN
	Memory    uint64 // of RUN's machine, in bytes; 0 is the default
	CPUs      int
	Unchecked bool // --allow-unchecked
	Net       network.Flags

	Images string // the image store's folder
	Cache  string // the folder of caches
	Env    func(string) (string, bool)
	In     io.Reader
	Out    io.Writer // the image's name, or its file
	Err    io.Writer // progress
	// Terminal says that Err is a terminal that is this wide; 0 is none.
	Terminal int
}

// UsageError is about what was typed.
type UsageError struct{ err error }

func (e *UsageError) Error() string { return e.err.Error() }
func (e *UsageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// maxFile bounds a Dockerfile and a .dockerignore from outside of the builder.
const maxFile = 1 << 20

// Run builds an image.
func Run(ctx context.Context, o Options) error {
	if o.Context == "" {
		o.Context = "."
	}
	// `smolvmm build smolerfiles/Dockerfile.web`, as smolBSD has it.
	if st, err := os.Stat(o.Context); err == nil && st.Mode().IsRegular() && o.File == "" {
		o.Context, o.File = ".", o.Context
	}
	if o.Go == "" { // the toolchain has its own words for its folder
		if err := folder(o.Context); err != nil {
			return err
		}
	}
	bo := builder.Options{Context: o.Context, Target: o.Target, NoCache: o.NoCache, Timeout: o.Timeout, Size: o.Size, AllowUnchecked: o.Unchecked}
	var err error
	if bo.Args, err = buildArgs(o.Args, o.Env); err != nil {
		return err
	}
	if bo.Secrets, err = secrets(o.Secrets, o.Env); err != nil {
		return err
	}
	if bo.Epoch, err = epoch(bo.Args, o.Env); err != nil {
		return err
	}
	show, err := newProgress(o)
	if err != nil {
		return err
	}
	defer show.close()
	bo.Progress = show.event
	images, err := store.Open(o.Images)
	if err != nil {
		return err
	}
	bo.Blobs = images.Blobs()
	// What this build has put there stays until an image refers to it.
	release, err := bo.Blobs.Hold()
	if err != nil {
		return err
	}
	defer release()
	bo.Cache = filepath.Join(o.Cache, "steps")
	tools := &tools{toolbox.New(toolbox.Options{Cache: filepath.Join(o.Cache, "toolbox"), Progress: show.line})}
	bo.Toolbox = tools
	bo.Images = &imageStore{s: images}
	bo.Sets = newSets(o, bo.Blobs, show)
	client := fetch.New(fetch.Options{Proxy: http.ProxyFromEnvironment})
	defer client.Close()
	bo.HTTP = client.HTTP()
	if bo.Packages, err = newPackages(o, bo.Blobs, client, show); err != nil {
		return err
	}
	if bo.Runner, err = newRunner(o, tools, bo.Blobs); err != nil {
		return err
	}
	fallback, err := dockerfile(ctx, o, tools, &bo)
	if err != nil {
		return err
	}
	refs, err := references(o.Tags)
	if err != nil {
		return err
	}
	res, err := builder.Build(ctx, bo)
	if err != nil {
		return err
	}
	if o.Output != "" {
		if err := res.WriteDisk(ctx, o.Output); err != nil {
			return err
		}
		fmt.Fprintln(o.Out, o.Output)
		return nil
	}
	if len(refs) == 0 {
		name := res.Name
		if name == "" {
			name = fallback
		}
		r, err := spec.ParseReference(strings.ToLower(name))
		if err != nil {
			return usagef("the image needs a name: -t NAME")
		}
		refs = []string{r.String()}
	}
	if err := res.Put(ctx, refs); err != nil {
		return err
	}
	for _, r := range refs {
		fmt.Fprintln(o.Out, r)
	}
	return nil
}

// folder says whether the build context is one.
func folder(name string) error {
	st, err := os.Stat(name)
	var pe *fs.PathError
	switch {
	case errors.As(err, &pe):
		return usagef("build context %s: %w", name, pe.Err)
	case err == nil && !st.IsDir():
		return usagef("build context %s: it is no folder", name)
	}
	return err
}

// references reads -t.
func references(tags []string) ([]string, error) {
	var out []string
	for _, t := range tags {
		r, err := spec.ParseReference(t)
		if err != nil {
			return nil, usagef("-t: %w", err)
		}
		if r.Digest != "" {
			return nil, usagef("-t %s: a digest is what an image has, not what it is given", t)
		}
		out = append(out, r.String())
	}
	return out, nil
}

// buildArgs reads --build-arg.
func buildArgs(list []string, env func(string) (string, bool)) (map[string]string, error) {
	out := map[string]string{}
	for _, a := range list {
		name, value, ok := strings.Cut(a, "=")
		if name == "" {
			return nil, usagef("--build-arg %q: give NAME=VALUE, or NAME for a variable of the environment", a)
		}
		if !ok {
			if value, ok = env(name); !ok {
				continue // as for Docker: the default counts
			}
		}
		out[name] = value
	}
	return out, nil
}

// maxSecret is as much as a machine is given.
const maxSecret = 16 << 20

// secrets reads --secret.
func secrets(list []string, env func(string) (string, bool)) (map[string][]byte, error) {
	out := map[string][]byte{}
	for _, s := range list {
		id, file, variable := s, "", s
		if name, path, ok := strings.Cut(s, "=@"); ok && !strings.ContainsAny(name, "=,") {
			id, file = name, path
		} else if strings.HasPrefix(s, "id=") || strings.Contains(s, ",") {
			id, variable = "", ""
			for _, f := range strings.Split(s, ",") {
				key, value, _ := strings.Cut(f, "=")
				switch key {
				case "id":
					id = value
				case "src", "source":
					file = value
				case "env":
					variable = value
				case "type":
				default:
					return nil, usagef("--secret %q: %q is not known: NAME, NAME=@FILE or id=NAME,src=FILE", s, key)
				}
			}
			if variable == "" {
				variable = id
			}
		} else if strings.Contains(s, "=") {
			name, _, _ := strings.Cut(s, "=")
			return nil, usagef("--secret %s=…: a value on the command line is there for ps to see; use --secret %s with the variable set, or %s=@FILE", name, name, name)
		}
		if id == "" {
			return nil, usagef("--secret %q: a secret needs a name", s)
		}
		if file == "" {
			v, ok := env(variable)
			if !ok {
				return nil, usagef("--secret %s: not set in the environment; set it, or give %s=@FILE", id, id)
			}
			out[id] = []byte(v)
			continue
		}
		b, err := readFile(file, maxSecret)
		if err != nil {
			return nil, usagef("--secret %s: %s: %w", id, file, err)
		}
		out[id] = b
	}
	return out, nil
}

// epoch reads SOURCE_DATE_EPOCH, the build argument over the variable
// (https://reproducible-builds.org/specs/source-date-epoch).
func epoch(args map[string]string, env func(string) (string, bool)) (time.Time, error) {
	const name = "SOURCE_DATE_EPOCH"
	s, ok := args[name]
	if !ok {
		s, ok = env(name)
	}
	if !ok || s == "" {
		return time.Time{}, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > 1<<40 {
		return time.Time{}, usagef("%s=%q: it must be a number of seconds since 1970", name, s)
	}
	return time.Unix(n, 0).UTC(), nil
}

// dockerfile finds the file to build, and gives the image's name where nothing
// else does.
func dockerfile(ctx context.Context, o Options, tools *tools, bo *builder.Options) (name string, err error) {
	if o.Go != "" {
		if o.File != "" || o.Target != "" {
			return "", usagef("--go makes an image of a program: it takes no -f and no --target")
		}
		return goProgram(ctx, o, tools, bo)
	}
	abs, err := filepath.Abs(o.Context)
	if err != nil {
		return "", err
	}
	name = filepath.Base(abs)
	file := o.File
	switch file {
	case "-":
		if bo.Text, err = readAll(o.In, maxFile); err != nil {
			return "", usagef("standard input: %w", err)
		}
		bo.Dockerfile = "-"
	case "":
		for _, n := range []string{"Dockerfile", "SMOLerfile"} {
			file = filepath.Join(o.Context, n)
			if bo.Text, err = readFound(file, maxFile); !errors.Is(err, fs.ErrNotExist) {
				break
			}
		}
		if errors.Is(err, fs.ErrNotExist) {
			return "", usagef("there is no Dockerfile in %s: name one with -f, or a Go package with --go", o.Context)
		}
	default:
		bo.Text, err = readFile(file, maxFile)
	}
	if err != nil {
		return "", usagef("%s: %w", file, err)
	}
	if bo.Dockerfile == "" {
		bo.Dockerfile = inContext(abs, file)
	}
	if base, ok := strings.CutSuffix(filepath.Base(file), ".smol"); ok {
		name = base
	}
	for _, n := range []string{file + ".dockerignore", filepath.Join(o.Context, ".dockerignore")} {
		if n == "-.dockerignore" {
			continue
		}
		bo.Ignore, err = readFound(n, maxFile)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", usagef("%s: %w", n, err)
		}
	}
	return name, nil
}

// inContext is what errors call the file: its path in the context, so that INCLUDE
// finds its neighbours, else as typed.
func inContext(context, file string) string {
	abs, err := filepath.Abs(file)
	if err != nil {
		return file
	}
	rel, err := filepath.Rel(context, abs)
	if err != nil || strings.HasPrefix(rel, "..") {
		return file
	}
	return filepath.ToSlash(rel)
}

// goProgram makes an image of nothing but a Go program.
func goProgram(ctx context.Context, o Options, tools *tools, bo *builder.Options) (string, error) {
	pkg := o.Go
	name := filepath.Base(filepath.Clean(pkg))
	if name == "." || name == "/" || name == ".." {
		abs, err := filepath.Abs(filepath.Join(o.Context, pkg))
		if err != nil {
			return "", err
		}
		name = filepath.Base(abs)
	}
	name, _, _ = strings.Cut(name, "@")
	if tree.CheckName(name) != nil || strings.ContainsAny(name, "\"\\$ ") {
		return "", usagef("--go %q: no name for a program can be made of it", pkg)
	}
	if err := os.MkdirAll(filepath.Join(o.Cache, "toolbox"), 0o700); err != nil {
		return "", err
	}
	program, err := tools.t.Program(ctx, o.Context, pkg)
	if err != nil {
		return "", err
	}
	root := tree.New()
	if err := root.Put("bin/"+name, tree.NewFile(0o755, program)); err != nil {
		return "", err
	}
	bo.Roots = map[string]*tree.Tree{"go": root}
	bo.Dockerfile = "--go " + pkg
	bo.Text = []byte("FROM scratch\nCOPY --from=go / /\nENTRYPOINT [\"/bin/" + name + "\"]\n")
	bo.Context = ""
	return name, nil
}

// tools is builder.Toolbox.
type tools struct{ t *toolbox.Toolbox }

func (t *tools) Init(ctx context.Context) (tree.Content, error) { return t.t.Init(ctx) }
func (t *tools) URoot(ctx context.Context) (*tree.Tree, error)  { return t.t.URoot(ctx) }
func (t *tools) Scratch() (*tree.Tree, error)                   { return toolbox.Scratch() }
func (t *tools) Devices(root *tree.Tree) error                  { return toolbox.Devices(root) }

// imageStore is builder.Images.
type imageStore struct{ s *store.Store }

func (i *imageStore) Resolve(_ context.Context, ref string) (spec.Image, error) {
	e, err := i.s.Resolve(ref)
	if errors.Is(err, store.ErrNotFound) {
		return spec.Image{}, fs.ErrNotExist
	}
	if err == nil && e.Tree == nil {
		e.Image.Tree = ""
	}
	return e.Image, err
}

func (i *imageStore) Tree(_ context.Context, img spec.Image) (*tree.Tree, error) {
	b, err := i.s.Blobs().Open(img.Tree)
	if err != nil {
		return nil, err
	}
	return i.s.OpenTree(store.Entry{Image: img, Tree: &b})
}

func (i *imageStore) HasDisk(digest string) bool {
	_, err := i.s.Blobs().Open(digest)
	return err == nil
}

// Temp is beside the store's contents, so that holes can stay holes and the disk
// has the room that the store has.
func (i *imageStore) Temp() (string, error) {
	f, err := os.CreateTemp(i.s.Dir(), ".build-*")
	if err != nil {
		return "", err
	}
	return f.Name(), f.Close()
}

func (i *imageStore) Put(ctx context.Context, refs []string, img spec.Image, disk string, root func() (*tree.Tree, error)) (spec.Image, error) {
	names := make([]spec.Reference, len(refs))
	for n, r := range refs {
		var err error
		if names[n], err = spec.ParseReference(r); err != nil {
			return img, err
		}
	}
	if disk == "" && i.has(refs, img) {
		return img, nil
	}
	t, err := root()
	if err != nil {
		return img, err
	}
	p := store.Put{Names: names, Image: img, Tree: t, DiskFile: disk}
	if disk == "" {
		if p.Disk, err = i.s.Blobs().Open(img.Disk.Digest); err != nil {
			return img, err
		}
	}
	e, err := i.s.Put(ctx, p)
	return e.Image, err
}

// has says whether all names are of this very image already.
func (i *imageStore) has(refs []string, img spec.Image) bool {
	doc, err := img.Encode()
	if err != nil {
		return false
	}
	for _, r := range refs {
		e, err := i.s.Resolve(r)
		if err != nil || string(e.Document) != string(doc) {
			return false
		}
	}
	return true
}

// Failed says whether an error is the Dockerfile's or its commands', and not the
// host's.
func Failed(err error) bool {
	var de *dialect.Error
	var exit *builder.ExitError
	return errors.As(err, &de) || errors.As(err, &exit)
}

var _ builder.Images = (*imageStore)(nil)
var _ builder.Toolbox = (*tools)(nil)
var _ tree.Content = blob.Blob{}
