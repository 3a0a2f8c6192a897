// Package redact removes credentials from failures before they are stored, published and
// logged: from texts, by the form of credentials and by the names before them, and from JSON, by
// the names of members. Every failure is redacted, whether a worker, a person, an executor or a
// peer service reported the failure.
//
// Redaction is idempotent.
package redact

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
)

// redacted replaces a secret.
const redacted = "[redacted]"

// The names of credentials, in lower case and without punctuation: whole names, and endings of
// names such as DB_PASSWORD. The bare name "token" is not listed, because a task's purpose may be
// to get a token, and pages of a list have tokens too.
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

// SecretName reports whether a name is that of a credential.
func SecretName(name string) bool {
	plain := punctuation.Replace(strings.ToLower(name))
	for _, ending := range secretEndings {
		if strings.HasSuffix(plain, ending) {
			return true
		}
	}
	return secrets[plain]
}

// JSON replaces the values of members with the name of a credential, at any depth, and
// credentials in all texts. A document without credentials is returned unchanged, to the byte;
// so is a document that is not JSON.
func JSON(data json.RawMessage) json.RawMessage {
	if len(data) == 0 {
		return data
	}

	var v any
	decoder := json.NewDecoder(bytes.NewReader(data))
	// A float64 would change the digits of long numbers.
	decoder.UseNumber()
	if decoder.Decode(&v) != nil {
		return data
	}

	clean, found := redact(v)
	// The caller's bytes: encoding would change order and spacing.
	if !found {
		return data
	}

	text, err := json.Marshal(clean)
	if err != nil {
		return nil // better no document than a secret
	}
	return text
}

// redact returns a JSON value without credentials, and whether there were any.
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
	_, flag := value.(bool) // such as needsPassword: no secret
	_, isText := value.(string)
	switch {
	case value == nil || flag:
		return value, false
	case SecretName(name) || name == "value" && namesSecret(of):
		return redacted, true
	case isText && strings.EqualFold(name, "token"):
		return value, false
	}
	return redact(value)
}

// namesSecret reports whether an object is a pair {name, value} of a secret, as in a list of
// headers or settings.
func namesSecret(pair map[string]any) bool {
	for _, member := range []string{"name", "key", "header"} {
		if name, ok := pair[member].(string); ok && SecretName(name) {
			return true
		}
	}
	return false
}

// Text replaces the credentials in a text. The time is proportional to the length, so bound the
// length first.
func Text(text string) string {
	if !strings.ContainsAny(strings.TrimRight(text, "="), ":=<. ") {
		return text // one word, without a name before a value; a long one is a file in base64
	}

	text = withoutScheme(withoutAssigned(withoutElements(text)))
	// Last: credentials without a name before them.
	for _, leak := range leaks {
		text = leak.look.ReplaceAllString(text, leak.to)
	}
	return text
}

var (
	// element is an XML element with a text; the text may be cut off.
	element = regexp.MustCompile(`<(?:[\w.-]+:)?([\w.-]+)(?:\s[^<>]*)?>(?:<!\[CDATA\[)?([^<]+)(?:<|$)`)
	// named is a name with the sign of an assignment, as in a query, a header, JSON or an
	// environment.
	named = regexp.MustCompile(`([A-Za-z][A-Za-z0-9_.@-]*)\\*["']?\s*(?:=>|=|:)\s*`)
	// begins is the beginning of a value: a quote, or a scheme of HTTP.
	begins = regexp.MustCompile(`(?i)^(?:\\*["'])?(?:(?:bearer|basic|digest|negotiate|token|apikey)\s+)?`)
	// plain is a value without quotes; whole is the rest of a line, which is the value of a cookie.
	plain = regexp.MustCompile(`^[^\s"',;&<]+`)
	whole = regexp.MustCompile(`^[^\r\n"]+`)
)

// withoutAssigned replaces the values that follow the name of a credential.
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

		// A quote or a scheme stays; the value after it is replaced.
		start := begins.FindString(rest)
		if n := valueLength(name, start, rest[len(start):]); n > 0 {
			out.WriteString(start + redacted)
			rest = rest[len(start)+n:]
		}
	}
}

// withoutElements replaces the texts of XML elements with the name of a credential.
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

// valueLength returns how many bytes of a text are the value that begins with start.
func valueLength(name, start, text string) int {
	quote := start[:strings.IndexFunc(start+"x", func(r rune) bool { return !strings.ContainsRune(`\"'`, r) })]
	switch {
	// Without the closing quote the text was cut off, and the rest is the value.
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

// scheme is a credential of HTTP in a sentence. A plain word after the scheme is no credential.
var scheme = regexp.MustCompile(`(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}`)

func withoutScheme(text string) string {
	return scheme.ReplaceAllStringFunc(text, func(found string) string {
		word := found[strings.LastIndexAny(found, " \t\r\n")+1:]
		// A plain word, as in "basic authentication", is no credential.
		if word == strings.ToLower(word) && !strings.ContainsAny(word, "0123456789.~+/=-_") {
			return found
		}
		return strings.TrimSuffix(found, word) + redacted
	})
}

// leaks are the forms of other credentials: JSON web tokens, user and password in a URL, keys.
var leaks = []struct {
	look *regexp.Regexp
	to   string
}{
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*`), redacted},
	{regexp.MustCompile(`://[^/?#\s"'<>]+@`), "://" + redacted + "@"},
	// User and password in a URL that was cut off. A host with a port does not match.
	{regexp.MustCompile(`://[^/?#\s"'<>@:\[]+:[^/?#\s"'<>@]*[^/?#\s"'<>@0-9][^/?#\s"'<>@]*$`), "://" + redacted},
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`), redacted},
}
