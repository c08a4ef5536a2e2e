package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/builder/archive"
	"github.com/smolvmm/smolvmm/builder/dialect"
	"github.com/smolvmm/smolvmm/builder/tree"
)

// maxDownload bounds what ADD fetches: more than an image's disk is no use.
const maxDownload = 64 << 30

// part finds what one source of a COPY or ADD of no other root is.
func (c *stepContext) part(ctx context.Context, in *dialect.Copy, s string, exclude *dialect.Patterns) ([]part, error) {
	if name, ok := strings.CutPrefix(s, "<<"); ok {
		for _, h := range in.Heredocs {
			if h.Name == name {
				n := tree.NewFile(0o644, nil)
				if h.Content != "" {
					n.Content = tree.Bytes(h.Content)
				}
				n.Mtime = c.made()
				return []part{{sourceSet: sourceSet{"heredoc " + name, name, n}}}, nil
			}
		}
	}
	if isURL(s) {
		// smolBSD's COPY fetches too.
		p, err := c.remote(in, s)
		return []part{p}, err
	}
	if strings.HasPrefix(s, "git@") || strings.HasPrefix(s, "git://") || strings.HasPrefix(s, "ssh://") {
		return nil, in.Errorf(s, "%s: git repositories are not fetched: ADD --checksum=sha256:… of an archive's URL is", s)
	}
	if in.Checksum != "" {
		return nil, in.Errorf("--checksum", "--checksum is for URLs")
	}
	sets, err := c.context.sources(s, exclude)
	if err != nil {
		return nil, in.Errorf(s, "%w", err)
	}
	var out []part
	for _, set := range sets {
		p := part{sourceSet: set}
		unpack := in.Add && set.node.Kind == tree.File && isArchive(set.base, set.node.Content) && (in.Unpack == nil || *in.Unpack)
		if in.Unpack != nil && *in.Unpack && set.node.Kind == tree.File {
			unpack = true
		}
		if unpack {
			d, err := tree.ContentDigest(set.node.Content)
			if err != nil {
				return nil, err
			}
			content := set.node.Content
			p.id = "unpack " + d
			p.open = func(ctx context.Context) (sourceSet, error) {
				return c.unpacked(ctx, set.name, content, archive.AllRoot)
			}
		}
		out = append(out, p)
	}
	return out, nil
}

// isArchive says whether ADD unpacks a file: a tar archive is told by its magic
// number, a compressed one by its name as well, as not all that is compressed is
// an archive.
func isArchive(name string, content tree.Content) bool {
	if content == nil {
		return false
	}
	r, err := content.Open()
	if err != nil {
		return false
	}
	defer r.Close()
	head := make([]byte, 262)
	n, _ := r.ReadAt(head, 0)
	head = head[:n]
	if n == len(head) && n == 262 && string(head[257:262]) == "ustar" {
		return true
	}
	for _, magic := range []string{"\x1f\x8b", "\xfd7zXZ\x00", "\x28\xb5\x2f\xfd"} {
		if strings.HasPrefix(string(head), magic) {
			for _, ext := range []string{".tgz", ".txz", ".tzst", ".tar.gz", ".tar.xz", ".tar.zst", ".tar"} {
				if strings.HasSuffix(name, ext) {
					return true
				}
			}
		}
	}
	return false
}

func isURL(s string) bool {
	return strings.HasPrefix(s, "https://") || strings.HasPrefix(s, "http://")
}

// unpacked reads an archive.
func (c *stepContext) unpacked(ctx context.Context, name string, content tree.Content, owners archive.Owners) (sourceSet, error) {
	r, err := content.Open()
	if err != nil {
		return sourceSet{}, err
	}
	defer r.Close()
	t := tree.New()
	err = archive.Read(ctx, newSection(r, content.Size()), t, archive.Options{Name: name, Owners: owners, NoDevices: true, Blobs: c.o.Blobs})
	return sourceSet{name, path.Base(name), t.Root}, err
}

// remote is what an URL of an ADD stands for: its checksum, or what was there when
// it was fetched first.
func (c *stepContext) remote(in *dialect.Copy, s string) (part, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return part{}, in.Errorf(s, "%s is no URL", s)
	}
	if strings.HasSuffix(u.Path, ".git") {
		return part{}, in.Errorf(s, "%s: git repositories are not fetched: ADD --checksum=sha256:… of an archive's URL is", s)
	}
	if c.o.HTTP == nil {
		return part{}, in.Errorf(s, "%s: this build fetches nothing", s)
	}
	if in.Checksum == "" && !c.o.AllowUnchecked {
		e := in.Errorf(s, "%s has no checksum, so that nobody would notice another file there", s)
		e.Hint = "ADD --checksum=sha256:… of it, or build with --allow-unchecked"
		return part{}, e
	}
	if in.Checksum != "" {
		if err := tree.CheckDigest(in.Checksum); err != nil {
			return part{}, in.Errorf("--checksum", "--checksum: %w", err)
		}
	}
	base := path.Base(u.Path)
	if tree.CheckName(base) != nil {
		if base = "index.html"; strings.HasSuffix(in.Dest, "/") {
			return part{}, in.Errorf(s, "%s has no name of a file: give the file's name in the destination", s)
		}
	}
	return part{
		sourceSet: sourceSet{name: s, base: base},
		id:        "url " + s + " " + in.Checksum + fmt.Sprint(in.Unpack != nil && *in.Unpack),
		open: func(ctx context.Context) (sourceSet, error) {
			n, err := c.fetch(ctx, s, in.Checksum)
			if err != nil {
				return sourceSet{}, in.Errorf(s, "%w", err)
			}
			if in.Unpack != nil && *in.Unpack {
				return c.unpacked(ctx, base, n.Content, archive.AllRoot)
			}
			return sourceSet{s, base, n}, nil
		},
	}, nil
}

// fetch gets a file and checks it before anything sees it.
func (e *engine) fetch(ctx context.Context, from, checksum string) (*tree.Node, error) {
	if checksum != "" {
		if b, err := e.o.Blobs.Open(checksum); err == nil && !e.o.NoCache {
			return &tree.Node{Kind: tree.File, Perm: 0o600, Content: b, Mtime: e.made()}, nil
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	resp, err := e.o.HTTP.Do(req)
	if err != nil {
		var ue *url.Error
		if errors.As(err, &ue) {
			err = ue.Err
		}
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s: the server says %s", from, resp.Status)
	}
	w, err := e.o.Blobs.Create()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(resp.Body, maxDownload+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", from, err)
	case n > maxDownload:
		return nil, fmt.Errorf("%s has more than %d GiB", from, maxDownload>>30)
	}
	got := tree.DigestPrefix + hex.EncodeToString(sum.Sum(nil))
	if checksum != "" && got != checksum {
		return nil, fmt.Errorf("%s has the checksum %s instead of %s: it is another file than was meant, or damaged", from, got, checksum)
	}
	node := &tree.Node{Kind: tree.File, Perm: 0o600, Mtime: e.made()}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil && t.After(time.Unix(0, 0)) && e.o.Epoch.IsZero() {
		node.Mtime = t.UnixNano()
	}
	if n == 0 {
		return node, nil
	}
	node.Content, err = w.Commit()
	return node, err
}

// localSet is an archive or a folder of the context that FROM names.
func (e *engine) localSet(name string) (Layer, error) {
	sets, err := e.context.sources(name, nil)
	if err != nil {
		return Layer{}, err
	}
	if len(sets) != 1 {
		return Layer{}, fmt.Errorf("%s: one archive or folder is needed", name)
	}
	n := sets[0].node
	l := Layer{Name: name}
	if n.Kind == tree.Dir {
		t := &tree.Tree{Root: n}
		if l.Digest, err = t.Digest(); err != nil {
			return l, err
		}
		l.Open = func(context.Context, bool) (*tree.Tree, error) { return t, nil }
		return l, nil
	}
	if n.Kind != tree.File || n.Content == nil {
		return l, fmt.Errorf("%s is neither an archive nor a folder", name)
	}
	if l.Digest, err = tree.ContentDigest(n.Content); err != nil {
		return l, err
	}
	l.Open = func(ctx context.Context, _ bool) (*tree.Tree, error) {
		r, err := n.Content.Open()
		if err != nil {
			return nil, err
		}
		defer r.Close()
		t := tree.New()
		// A set is trusted as NetBSD's own are: owners and devices are its own.
		return t, archive.Read(ctx, newSection(r, n.Content.Size()), t, archive.Options{Name: name, Blobs: e.o.Blobs})
	}
	return l, nil
}
