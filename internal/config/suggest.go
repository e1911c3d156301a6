package config

import (
	"fmt"
	"strings"
)

// suggest asks whether the word was meant that is nearest, or is empty.
func suggest(got string, words []string) string {
	if word := nearest(got, words); word != "" {
		return didYouMean(word)
	}
	return ""
}

func didYouMean(word string) string { return fmt.Sprintf("did you mean `%s`?", word) }

// nearest is the word that was probably meant, or empty.
func nearest(got string, words []string) string {
	if len(got) > 40 {
		return ""
	}
	best, least := "", 1<<30
	for _, w := range words {
		if d := distance(plain(got), plain(w)); d < least {
			best, least = w, d
		}
	}
	if best == "" || least > max(1, len(best)/3) {
		return ""
	}
	return best
}

// plain folds what people vary without meaning it: case, "-" and "_".
func plain(s string) string {
	return strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(s))
}

// distance is the number of bytes to insert, delete, replace or swap with the next one that turn a into b
// (optimal string alignment).
func distance(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(b)]
}

// list joins words for a sentence: "a, b or c", each in backquotes.
func list(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = "`" + w + "`"
	}
	if len(quoted) < 2 {
		return strings.Join(quoted, "")
	}
	n := len(quoted) - 1
	return strings.Join(quoted[:n], ", ") + " or " + quoted[n]
}
