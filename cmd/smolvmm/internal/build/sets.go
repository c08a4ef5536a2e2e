package build

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path/filepath"

	"github.com/smolvmm/smolvmm/builder"
	"github.com/smolvmm/smolvmm/builder/archive"
	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/sets"
	"github.com/smolvmm/smolvmm/builder/tree"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/kernels/mirror"
)

// newSets gives where FROM's sets come from.
func newSets(o Options, blobs *blob.Store, show *progress) builder.Sets {
	if o.Sets != "" {
		return &folderSets{o.Sets, blobs}
	}
	if o.Mirror == "" {
		o.Mirror, _ = o.Env(mirror.MirrorVariable)
	}
	return &mirrorSets{o: sets.Options{
		Mirror: o.Mirror, Cache: filepath.Join(o.Cache, "sets"), Blobs: blobs, Proxy: http.ProxyFromEnvironment,
		Progress: show.set,
	}}
}

// mirrorSets are fetched from NetBSD's mirrors, and kept.
type mirrorSets struct{ o sets.Options }

func (m *mirrorSets) Fetch(ctx context.Context, release string, names []string) ([]builder.Layer, error) {
	o := m.o
	o.Release, o.Names = release, names
	g, err := sets.Find(ctx, o)
	if err != nil {
		return nil, err
	}
	var out []builder.Layer
	for i, set := range g.Sets {
		out = append(out, builder.Layer{Name: set.Name, Digest: set.Digest, Open: func(ctx context.Context, whole bool) (*tree.Tree, error) {
			ts, err := g.Trees(ctx, whole)
			if err != nil {
				return nil, err
			}
			return ts[i], nil
		}})
	}
	return out, nil
}

// folderSets are archives in a folder of the host: --sets.
type folderSets struct {
	dir   string
	blobs *blob.Store
}

func (f *folderSets) Fetch(ctx context.Context, _ string, names []string) ([]builder.Layer, error) {
	var out []builder.Layer
	for _, name := range names {
		l, err := f.set(name)
		if err != nil {
			return nil, err
		}
		out = append(out, l)
	}
	return out, nil
}

func (f *folderSets) set(name string) (builder.Layer, error) {
	for _, ext := range []string{".tar.xz", ".tgz", ".tar.gz", ".tar.zst", ".tar"} {
		path := filepath.Join(f.dir, name+ext)
		n, err := archive.FromFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return builder.Layer{}, err
		}
		d, err := tree.ContentDigest(n.Content)
		if err != nil {
			return builder.Layer{}, fmt.Errorf("set %s: %w", path, err)
		}
		return builder.Layer{Name: name, Digest: d, Open: func(ctx context.Context, _ bool) (*tree.Tree, error) {
			r, err := n.Content.Open()
			if err != nil {
				return nil, err
			}
			defer r.Close()
			t := tree.New()
			return t, archive.Read(ctx, io.NewSectionReader(r, 0, n.Content.Size()), t, archive.Options{Name: filepath.Base(path), Blobs: f.blobs})
		}}, nil
	}
	return builder.Layer{}, fmt.Errorf("there is no set %s in %s: as %s.tar.xz, .tgz, .tar.gz, .tar.zst or .tar", name, f.dir, name)
}
