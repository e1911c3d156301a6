// Package preload holds the Node preload: the file that tells the gate behind which request caused what a Node service
// sends, without a change to the service. What it does, and what it cannot know, is in doc/node.md.
package preload

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

//go:embed preload.cjs
var source []byte

const (
	folderName = "sallyport-preload"
	fileName   = "preload.cjs"
)

// Write puts the preload where every user can read it and only we can write: in a folder of its own below parent. It
// returns the file's path. A folder that an earlier start has left is taken again if nobody else could have touched it and
// it holds this very file.
func Write(parent string) (string, error) {
	folder := filepath.Join(parent, folderName)
	err := os.Mkdir(folder, 0o755)
	if errors.Is(err, fs.ErrExist) && !ours(folder) {
		folder, err = os.MkdirTemp(parent, folderName+"-")
	} else if errors.Is(err, fs.ErrExist) {
		return filepath.Join(folder, fileName), nil
	}
	if err != nil {
		return "", fmt.Errorf("write the preload: %w", err)
	}
	file := filepath.Join(folder, fileName)
	// Mkdir and WriteFile heed the umask.
	for _, step := range []error{os.Chmod(folder, 0o755), os.WriteFile(file, source, 0o444), os.Chmod(file, 0o444)} {
		if step != nil {
			return "", fmt.Errorf("write the preload: %w", errors.Join(step, os.RemoveAll(folder)))
		}
	}
	return file, nil
}

// ours reports whether the folder and the file in it are what Write makes: of this user, and writable by nobody else.
func ours(folder string) bool {
	for _, path := range []string{folder, filepath.Join(folder, fileName)} {
		st, err := os.Lstat(path)
		if err != nil || st.Mode()&fs.ModeSymlink != 0 || st.Mode().Perm()&0o022 != 0 || st.Mode().Perm()&0o444 != 0o444 {
			return false
		}
		if owner, ok := st.Sys().(*syscall.Stat_t); !ok || int(owner.Uid) != os.Geteuid() {
			return false
		}
	}
	there, err := os.ReadFile(filepath.Join(folder, fileName))
	return err == nil && bytes.Equal(there, source)
}

// Options is NODE_OPTIONS with the preload in front of what the operator wants, which so finds it in place.
func Options(file, operator string) string {
	option := "--require=" + file
	if strings.ContainsAny(file, ` "\`) {
		// Node takes double quotes, and a backslash in them (doc/api/cli.md, NODE_OPTIONS).
		option = `--require="` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(file) + `"`
	}
	return strings.TrimSpace(option + " " + operator)
}
