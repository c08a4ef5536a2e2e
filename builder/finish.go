package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/builder/dialect"
	"github.com/smolvmm/smolvmm/builder/image"
	"github.com/smolvmm/smolvmm/builder/spec"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// Where the guest's first process and its configuration are.
const (
	initPath = "sbin/init"
	confPath = "etc/smolinit.json"
)

// Free space of an image whose file asks for nothing, in bytes: the disk of a
// machine is an overlay over it, and its free blocks are holes on the host.
const (
	freeSets    = 64 << 20
	freeScratch = 1 << 20
)

// finish makes the root bootable and describes the image, all but its disk.
func (e *engine) finish(ctx context.Context, s *dialect.Stage, st *state) (*Result, error) {
	labels, err := dialect.ReadLabels(st.cfg.Labels)
	if err != nil {
		return nil, locate(s.Pos, err)
	}
	cfg := st.cfg
	cfg.Env = st.vars.Env()
	cfg.User = st.user
	if s.SmolBSD && (st.user == "" || st.user == "root") {
		cfg.Cmd, cfg.Entrypoint = smolBSDCommand(cfg.Cmd), smolBSDCommand(cfg.Entrypoint)
	}
	if err := cfg.Validate(); err != nil {
		return nil, locate(st.cmdAt, err) // all else was checked where it was set
	}
	publish := slices.Clone(st.publish)
	for _, p := range labels.Publish {
		if pub := p.Publish(); !slices.Contains(publish, pub) {
			publish = append(publish, pub)
		}
	}
	var initBin tree.Content
	initDigest := ""
	if !labels.KeepInit {
		if e.o.Toolbox == nil {
			return nil, errors.New("this build has no smolinit: LABEL smolvmm.init=keep makes an image with its own /sbin/init")
		}
		if initBin, err = e.o.Toolbox.Init(ctx); err != nil {
			return nil, fmt.Errorf("smolinit: %w", err)
		}
		if initDigest, err = tree.ContentDigest(initBin); err != nil {
			return nil, fmt.Errorf("smolinit: %w", err)
		}
	}
	doc, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	key := newKey("finish").add(st.key, initDigest, string(doc), fmt.Sprint(e.o.Epoch.UnixNano())).sum()
	res := &Result{Labels: maps.Clone(cfg.Labels), Name: labels.Service, e: e}
	done := *st
	if data, ok := e.finished(&done, key); ok {
		cfg = data
	} else {
		if err := e.bootable(ctx, &done, &cfg, initBin, key); err != nil {
			return nil, err
		}
	}
	res.Labels = cfg.Labels
	img := spec.Image{Architecture: "amd64", OS: "netbsd", Config: cfg, Publish: publish, Tree: done.digest}
	if !e.o.Epoch.IsZero() {
		img.Created = e.o.Epoch.UTC().Format(time.RFC3339)
	}
	o := image.Options{Layout: labels.Layout, Minimize: true, Time: e.o.Epoch}
	if e.o.Epoch.IsZero() {
		o.Time = time.Time{}
	}
	switch size := max(e.o.Size, labels.ImgSize<<20); {
	case e.o.Size > 0:
		o.Size, o.Minimize = e.o.Size, false
	case labels.Minimize && size > 0:
		// smolBSD's imgsize is then where its file system is made, before it is shrunk.
		o.Size = size
	case size > 0:
		o.Size, o.Minimize = size, false
	}
	switch {
	case !o.Minimize:
	case labels.Minimize && labels.Extra > 0:
		o.Free = labels.Extra << 20
	case labels.Minimize:
		o.Free = 0 // a tenth of the content, once it is known: see Disk
	case st.base != nil && strings.HasPrefix(st.base.kind, "scratch"):
		o.Free = freeScratch
	default:
		o.Free = freeSets
	}
	if o.Layout == "" {
		o.Layout = image.FFS
	}
	if labels.Service != "" {
		o.Label = labels.Service + "root"
	}
	res.Image, res.Layout = img, o
	res.state = &done
	res.tenth = labels.Minimize && labels.Extra == 0
	return res, nil
}

// finished finds a root that was made bootable before, and what its config became.
func (e *engine) finished(st *state, key string) (spec.Config, bool) {
	var cfg spec.Config
	if e.o.NoCache {
		return cfg, false
	}
	got, ok := e.cache.get(key)
	if !ok || got.Tree == "" || json.Unmarshal(got.Data, &cfg) != nil || !e.whole(got.Tree) {
		return cfg, false
	}
	st.key, st.digest, st.root = key, got.Tree, nil
	return cfg, true
}

// bootable adds what a kernel and smolinit need, and turns names into numbers.
func (e *engine) bootable(ctx context.Context, st *state, cfg *spec.Config, initBin tree.Content, key string) error {
	root, err := e.own(st)
	if err != nil {
		return err
	}
	who := identity{}
	if cfg.User != "" {
		if who, err = lookup(root, cfg.User); err != nil {
			err = fmt.Errorf("USER %s: %w", cfg.User, err)
			if st.userAt.Line > 0 {
				err = locate(st.userAt, err)
			}
			return err
		}
	}
	cfg.UID, cfg.GID, cfg.Groups = who.uid, who.gid, who.groups
	if who.home != "" && !slices.ContainsFunc(cfg.Env, func(s string) bool { return strings.HasPrefix(s, "HOME=") }) {
		cfg.Env = append(slices.Clone(cfg.Env), "HOME="+who.home)
	}
	for _, d := range []struct {
		name string
		perm uint16
	}{{"dev", 0o755}, {"tmp", 0o1777}, {"sbin", 0o755}, {"etc", 0o755}} {
		if err := e.folder(root, d.name, d.perm); err != nil {
			return err
		}
	}
	// The kernel opens /dev/console for init, the Go runtime /dev/null; with all of
	// them there smolinit need not make any.
	if e.o.Toolbox != nil {
		if err := e.o.Toolbox.Devices(root); err != nil {
			return fmt.Errorf("device nodes: %w", err)
		}
	}
	keep := initBin == nil
	if !keep {
		if keep, err = e.ownInit(st, root); err != nil {
			return err
		}
	}
	if keep {
		if _, n, err := root.Resolve(initPath); err != nil || n.Kind != tree.File {
			return errors.New("LABEL smolvmm.init=keep, and the image has no /sbin/init")
		}
		cfg.Labels = maps.Clone(cfg.Labels)
		if cfg.Labels == nil {
			cfg.Labels = map[string]string{}
		}
		// An image built on this one keeps it too.
		cfg.Labels["smolvmm.init"] = "keep"
	} else if err := e.install(root, cfg, initBin); err != nil {
		return err
	}
	if err := e.clamp(root); err != nil {
		return err
	}
	st.key, st.root = key, root
	if st.digest, err = e.cache.store(ctx, root); err != nil {
		return err
	}
	data, err := json.Marshal(cfg)
	if err != nil {
		return err
	}
	e.mu.Lock()
	e.worked = true
	e.mu.Unlock()
	e.cache.put(entry{Key: key, Tree: st.digest, Data: data})
	return nil
}

// ownInit says whether the Dockerfile has brought an /sbin/init of its own: one
// that differs from what its base had.
func (e *engine) ownInit(st *state, root *tree.Tree) (bool, error) {
	_, n, err := root.Resolve(initPath)
	if err != nil {
		return false, nil
	}
	if n.Kind != tree.File {
		return false, fmt.Errorf("/%s is a %v", initPath, n.Kind)
	}
	base, err := e.view(st.base)
	if err != nil {
		return false, err
	}
	_, old, err := base.Resolve(initPath)
	if err != nil || old.Kind != tree.File {
		return true, nil
	}
	a, err := tree.ContentDigest(n.Content)
	if err != nil {
		return false, err
	}
	b, err := tree.ContentDigest(old.Content)
	return a != b, err
}

// install puts smolinit and its configuration into the root.
func (e *engine) install(root *tree.Tree, cfg *spec.Config, initBin tree.Content) error {
	doc, err := cfg.ToInit(nil, nil)
	if err != nil {
		return err
	}
	text, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	bin := tree.NewFile(0o755, initBin)
	conf := tree.NewFile(0o644, tree.Bytes(append(text, '\n')))
	for name, n := range map[string]*tree.Node{initPath: bin, confPath: conf} {
		n.Mtime = e.made()
		dir, err := resolved(root, path.Dir(name))
		if err != nil {
			return err
		}
		if old := dir.Child(path.Base(name)); old != nil && old.Kind == tree.Dir {
			return fmt.Errorf("/%s is a folder in the image", name)
		}
		if err := dir.Set(path.Base(name), n); err != nil {
			return err
		}
	}
	return nil
}

func resolved(root *tree.Tree, name string) (*tree.Node, error) {
	_, n, err := root.Resolve(name)
	if err != nil {
		return nil, err
	}
	if n.Kind != tree.Dir {
		return nil, fmt.Errorf("/%s is a %v in the image, not a folder", name, n.Kind)
	}
	return n, nil
}

// folder makes a folder of the root if there is none.
func (e *engine) folder(root *tree.Tree, name string, perm uint16) error {
	_, n, err := root.Resolve(name)
	if err == nil {
		if n.Kind != tree.Dir {
			return fmt.Errorf("/%s is a %v in the image, not a folder", name, n.Kind)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) || root.Root.Child(name) != nil {
		return fmt.Errorf("/%s in the image: %w", name, err)
	}
	d := tree.NewDir(perm)
	d.Mtime = e.made()
	return root.Root.Set(name, d)
}

// clamp takes times that are later than SOURCE_DATE_EPOCH back to it.
func (e *engine) clamp(root *tree.Tree) error {
	if e.o.Epoch.IsZero() {
		return nil
	}
	latest := e.o.Epoch.UnixNano()
	return root.Walk(func(_ string, n *tree.Node) error {
		n.Mtime = min(n.Mtime, latest)
		return nil
	})
}

// Root gives the image's root, not to be changed.
func (r *Result) Root() (*tree.Tree, error) { return r.e.view(r.state) }

// Layouts gives how a disk is made: Layout, with the free space that is a part of
// the content's size.
func (r *Result) diskOptions(root *tree.Tree) (image.Options, error) {
	o := r.Layout
	if !r.tenth {
		return o, nil
	}
	info, err := image.Plan(root, o)
	if err != nil {
		return o, err
	}
	// smolBSD's minimize=y: a tenth more than the content.
	o.Free = info.Size / 10
	return o, nil
}

// WriteDisk makes the image's disk in a file, which appears under its name when it
// is whole, and describes it in Image.Disk, without a digest.
func (r *Result) WriteDisk(ctx context.Context, name string) error {
	return r.again(ctx, func() error { return r.writeDisk(ctx, name) })
}

// again does something once more if contents that the build had cached are missing,
// after a build that makes them again.
func (r *Result) again(ctx context.Context, do func() error) error {
	err := do()
	if !lost(err) || r.e.careful || ctx.Err() != nil {
		return err
	}
	res, err := rebuild(ctx, r.e.o, err)
	if err != nil {
		return err
	}
	*r = *res
	return do()
}

func (r *Result) writeDisk(ctx context.Context, name string) error {
	root, err := r.Root()
	if err != nil {
		return err
	}
	o, err := r.diskOptions(root)
	if err != nil {
		return err
	}
	info, err := image.Create(ctx, name, root, o)
	if err != nil {
		return fmt.Errorf("disk image in %s: %w", filepath.Dir(name), plain(err))
	}
	r.Image.Disk = spec.Disk{Size: info.Size, Layout: info.Layout, Root: info.Root}
	return nil
}

// Put files the image in the store under its names. A disk that was made before
// and is still there is not made again.
func (r *Result) Put(ctx context.Context, refs []string) error {
	return r.again(ctx, func() error { return r.put(ctx, refs) })
}

func (r *Result) put(ctx context.Context, refs []string) error {
	e := r.e
	key := newKey("disk").add(r.Image.Tree, fmt.Sprintf("%+v %v", r.Layout, r.tenth)).sum()
	var err error
	if got, ok := e.cache.get(key); ok && !e.o.NoCache && json.Unmarshal(got.Data, &r.Image.Disk) == nil && e.o.Images.HasDisk(r.Image.Disk.Digest) {
		// Nobody reads the contents here, as for a disk: all must be there.
		whole := func() (*tree.Tree, error) { return e.cache.load(r.state.digest, true) }
		r.Image, err = e.o.Images.Put(ctx, refs, r.Image, "", whole)
		return err
	}
	r.Cached = false
	name, err := e.o.Images.Temp()
	if err != nil {
		return err
	}
	defer os.Remove(name)
	if err := r.writeDisk(ctx, name); err != nil {
		return err
	}
	if r.Image, err = e.o.Images.Put(ctx, refs, r.Image, name, r.Root); err != nil {
		return err
	}
	data, err := json.Marshal(r.Image.Disk)
	if err != nil {
		return err
	}
	e.cache.put(entry{Key: key, Data: data})
	return e.cache.flush()
}
