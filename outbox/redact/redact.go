// Package redact takes credentials out of what is kept, told and logged: out of texts,
// by what credentials look like and by the names that they are given under, and out of
// JSON, by the names of members. Every failure goes through it, whoever it came from: a
// worker, a person, another system, an executor, a neighbour.
//
// Done twice it changes nothing more.
package redact

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
)

// redacted stands where a secret stood.
const redacted = "[redacted]"

// The names under which credentials travel, without case and punctuation: those that
// are one as a whole, and those that are one with anything before them, such as
// DB_PASSWORD. A bare "token" is not among them: to get one may be what a task is for,
// and pages have them too.
var (
	secrets = map[string]bool{
		"authorization": true, "proxyauthorization": true, "xauthorization": true, "cookie": true, "setcookie": true,
		"pwd": true, "pass": true, "userpass": true, "dbpass": true, "jwt": true,
	}
	secretEndings = []string{
		"password", "passwd", "passphrase", "passwordhash", "userpwd", "dbpwd", "secret", "credential", "credentials",
		"apikey", "secretkey", "accesskey", "privatekey", "signingkey", "encryptionkey", "accountkey", "connectionstring",
		"accesstoken", "refreshtoken", "authtoken", "bearertoken", "sessiontoken", "apitoken", "idtoken", "usertoken",
		"servicetoken", "securitytoken", "bottoken", "sastoken", "csrftoken", "xsrftoken",
	}
	punctuation = strings.NewReplacer("-", "", "_", "", ".", "", "@", "", " ", "")
)

// SecretName says whether credentials travel under a name.
func SecretName(name string) bool {
	plain := punctuation.Replace(strings.ToLower(name))
	for _, ending := range secretEndings {
		if strings.HasSuffix(plain, ending) {
			return true
		}
	}
	return secrets[plain]
}

// JSON replaces the values of members that are credentials by their names, at any depth,
// and what looks like a credential in any text. A document without any is returned as it
// came, to the byte; one that is no JSON too.
func JSON(data json.RawMessage) json.RawMessage {
	if len(data) == 0 {
		return data
	}
	var v any
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if decoder.Decode(&v) != nil {
		return data
	}
	clean, found := redact(v)
	if !found {
		return data
	}
	text, err := json.Marshal(clean)
	if err != nil {
		return nil // rather nothing than a secret
	}
	return text
}

// redact reports whether it found something.
func redact(v any) (clean any, found bool) {
	switch v := v.(type) {
	case string:
		text := Text(v)
		return text, text != v
	case []any:
		for i, each := range v {
			var here bool
			v[i], here = redact(each)
			found = found || here
		}
	case map[string]any:
		clean := make(map[string]any, len(v))
		for name, value := range v {
			to, here := redactMember(v, name, value)
			plain := Text(name)
			clean[plain], found = to, found || here || plain != name
		}
		return clean, found
	}
	return v, found
}

func redactMember(of map[string]any, name string, value any) (clean any, found bool) {
	_, flag := value.(bool) // says that there is one, as in needsPassword
	_, said := value.(string)
	switch {
	case value == nil || flag:
		return value, false
	case SecretName(name) || name == "value" && namesSecret(of):
		return redacted, true
	case said && strings.EqualFold(name, "token"):
		return value, false
	}
	return redact(value)
}

// namesSecret: a list of headers or settings may be one of {name, value}.
func namesSecret(pair map[string]any) bool {
	for _, member := range []string{"name", "key", "header"} {
		if name, ok := pair[member].(string); ok && SecretName(name) {
			return true
		}
	}
	return false
}

// Text takes out of a text what looks like a credential in it. It takes time in
// proportion to the text: bound it first.
func Text(text string) string {
	if !strings.ContainsAny(strings.TrimRight(text, "="), ":=<. ") {
		return text // a word: long ones are files, and not looked through
	}
	text = withoutScheme(withoutAssigned(withoutElements(text)))
	for _, leak := range leaks {
		text = leak.look.ReplaceAllString(text, leak.to)
	}
	return text
}

var (
	// element is one of XML, with a text; the text may be cut off.
	element = regexp.MustCompile(`<(?:[\w.-]+:)?([\w.-]+)(?:\s[^<>]*)?>(?:<!\[CDATA\[)?([^<]+)(?:<|$)`)
	// named is a name that is given a value: as in a query, a header, JSON or an
	// environment.
	named = regexp.MustCompile(`([A-Za-z][A-Za-z0-9_.@-]*)\\*["']?\s*(?:=>|=|:)\s*`)
	// begins is what a value can begin with: a quote, or a scheme of HTTP.
	begins = regexp.MustCompile(`(?i)^(?:\\*["'])?(?:(?:bearer|basic|digest|negotiate|token|apikey)\s+)?`)
	// plain is a value without quotes; whole the rest of a line, which cookies take.
	plain = regexp.MustCompile(`^[^\s"',;&<]+`)
	whole = regexp.MustCompile(`^[^\r\n"]+`)
)

// withoutAssigned replaces the values of names that are those of credentials.
func withoutAssigned(text string) string {
	var out strings.Builder
	rest := text
	for {
		at := named.FindStringSubmatchIndex(rest)
		if at == nil {
			out.WriteString(rest)
			return out.String()
		}
		out.WriteString(rest[:at[1]])
		name := rest[at[2]:at[3]]
		rest = rest[at[1]:]
		if !SecretName(name) {
			continue
		}
		start := begins.FindString(rest)
		if n := valueLength(name, start, rest[len(start):]); n > 0 {
			out.WriteString(start + redacted)
			rest = rest[len(start)+n:]
		}
	}
}

// withoutElements does the same for XML.
func withoutElements(text string) string {
	var out strings.Builder
	rest := text
	for {
		at := element.FindStringSubmatchIndex(rest)
		if at == nil {
			out.WriteString(rest)
			return out.String()
		}
		if SecretName(rest[at[2]:at[3]]) {
			out.WriteString(rest[:at[4]] + redacted)
		} else {
			out.WriteString(rest[:at[5]])
		}
		rest = rest[at[5]:]
	}
}

// valueLength is how much of a text is the value whose beginning stands before it.
func valueLength(name, start, text string) int {
	quote := start[:strings.IndexFunc(start+"x", func(r rune) bool { return !strings.ContainsRune(`\"'`, r) })]
	switch {
	case quote != "":
		if end := strings.Index(text, quote); end >= 0 {
			return end
		}
		return len(text)
	case strings.HasSuffix(strings.ToLower(name), "cookie") || strings.HasPrefix(strings.ToLower(start), "digest"):
		return len(whole.FindString(text))
	}
	return len(plain.FindString(text))
}

// scheme is a credential of HTTP in a sentence; words that follow are none.
var scheme = regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}`)

func withoutScheme(text string) string {
	return scheme.ReplaceAllStringFunc(text, func(found string) string {
		word := found[strings.LastIndexAny(found, " \t\r\n")+1:]
		if word == strings.ToLower(word) && !strings.ContainsAny(word, "0123456789.~+/=-_") {
			return found
		}
		return strings.TrimSuffix(found, word) + redacted
	})
}

// leaks are what other credentials look like in a text.
var leaks = []struct {
	look *regexp.Regexp
	to   string
}{
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), redacted},
	{regexp.MustCompile(`://[^/?#\s"'<>]+@`), "://" + redacted + "@"},
	// The same, cut off; a host with its port is none.
	{regexp.MustCompile(`://[^/?#\s"'<>@:\[]+:[^/?#\s"'<>@]*[^/?#\s"'<>@0-9][^/?#\s"'<>@]*$`), "://" + redacted},
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`), redacted},
}
