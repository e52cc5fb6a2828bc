/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The normal form of a name: lower case, A-labels of IDNA2008, and nothing that two programs could
 * read in two ways. What everybody after this function sees (rules, resolver, certificate, Host)
 * is its result alone, so it need only be strict, never faithful to what a browser would do.
 *
 * Libidn2 is asked label by label, and only for labels that need it: the dot that separates labels
 * is U+002E and no other, and nothing outside ASCII may become ASCII ("full-width" letters, the
 * Kelvin sign), disappear (soft hyphens, zero-width characters) or become longer.
 *
 * Thread: any. fork: no state.
 */
#include "egress/names.h"
#include "egress/rules.h"

#include "lib/utf8.h"

#include <errno.h>
#include <idn2.h>
#include <stdio.h>
#include <string.h>

#define LABEL_MAX 63u
/* Of what is written: a name of 253 bytes has fewer characters, each of at most 4 bytes. */
#define WRITTEN_MAX (4 * EGRESS_HOST_MAX)

/* IDNA2008 as it is written: no mapping, and context rules and bidi as libidn2 does for look-ups.
 */
#define STRICT IDN2_NO_TR46

static bool is_digit(char c)
{
	return c >= '0' && c <= '9';
}

static bool is_letter(char c)
{
	return c >= 'a' && c <= 'z';
}

static bool is_hex(char c)
{
	return is_digit(c) || (c >= 'a' && c <= 'f');
}

static bool is_ascii(const char *s)
{
	for (; *s; s++) {
		if ((unsigned char)*s >= 0x80)
			return false;
	}
	return true;
}

static bool has_prefix(const char *s, const char *prefix)
{
	return strncmp(s, prefix, strlen(prefix)) == 0;
}

static const char *hyphen_fault(const char *label)
{
	bool bad = label[0] == '-' || label[strlen(label) - 1] == '-';

	return bad ? "has a label that begins or ends with a hyphen" : NULL;
}

/* A label of a host: letters, digits, hyphens within; "_" because names with it do exist. */
static const char *ascii_fault(const char *label)
{
	size_t n = strlen(label);

	for (const char *p = label; *p; p++) {
		if (!is_letter(*p) && !is_digit(*p) && *p != '-' && *p != '_')
			return "has a character that no name has";
	}
	if (n > LABEL_MAX)
		return "has a label of more than 63 bytes";
	return hyphen_fault(label);
}

static int idn_error(int rc, const char **fault)
{
	if (rc == IDN2_MALLOC) {
		*fault = "cannot be read: there is no memory";
		return -ENOMEM;
	}
	*fault = "has a label that is not valid in IDNA2008";
	return -EINVAL;
}

/* The A-label of a label in UTF-8, into out (LABEL_MAX + 1). */
static int to_alabel(const char *label, int flags, char *out, const char **fault)
{
	uint8_t *a = NULL;
	int rc;

	*fault = hyphen_fault(label); /* RFC 5891, 4.2.3.1: libidn2 leaves it out of look-ups */
	if (*fault)
		return -EINVAL;
	rc = idn2_lookup_u8((const uint8_t *)label, &a, flags);
	if (rc != IDN2_OK)
		return idn_error(rc, fault);
	rc = 0;
	if (strlen((char *)a) > LABEL_MAX) {
		*fault = "has a label of more than 63 bytes";
		rc = -EINVAL;
	} else if (!has_prefix((char *)a, "xn--") || ascii_fault((char *)a)) {
		*fault = "has a label that only looks like ASCII";
		rc = -EINVAL;
	} else {
		memcpy(out, a, strlen((char *)a) + 1);
	}
	idn2_free(a);
	return rc;
}

/* One character at *s, and past it. The text is valid UTF-8. */
static uint32_t next_char(const char **s)
{
	const unsigned char *p = (const unsigned char *)*s;
	uint32_t c = *p++;
	unsigned more = c >= 0xf0 ? 3 : c >= 0xe0 ? 2 : c >= 0xc0 ? 1 : 0;

	if (more)
		c &= 0x3fu >> more;
	while (more--)
		c = c << 6 | (*p++ & 0x3f);
	*s = (const char *)p;
	return c;
}

/*
 * Whether mapped is written with nothing but other characters in the places of those outside ASCII:
 * as lower case is. Not when something became ASCII, vanished, or became several.
 */
static bool only_case(const char *written, const char *mapped)
{
	while (*written && *mapped) {
		uint32_t w = next_char(&written), m = next_char(&mapped);

		if (w != m && (w < 0x80 || m < 0x80))
			return false;
	}
	return !*written && !*mapped;
}

/*
 * A label with something outside ASCII; its ASCII letters are lower case already. As it is; or
 * with capitals, which IDNA2008 leaves to the user interface, made small by the table of UTS 46.
 */
static int unicode_label(const char *label, char *out, const char **fault)
{
	char again[LABEL_MAX + 1];
	char *mapped = NULL;
	int rc = to_alabel(label, STRICT | IDN2_NFC_INPUT, out, fault);
	const char *first = *fault;

	if (rc != -EINVAL)
		return rc;
	rc = to_alabel(label, IDN2_NONTRANSITIONAL, out, fault);
	if (rc < 0)
		return rc;
	rc = idn2_to_unicode_8z8z(out, &mapped, 0);
	if (rc != IDN2_OK)
		return idn_error(rc, fault);
	rc = only_case(label, mapped) ? to_alabel(mapped, STRICT, again, fault) : -EINVAL;
	idn2_free(mapped);
	if (rc == 0 && strcmp(again, out) != 0)
		rc = -EINVAL;
	if (rc == -EINVAL)
		*fault = first;
	return rc;
}

/* An A-label must be what its own decoding gives. */
static int check_alabel(const char *label, const char **fault)
{
	char again[LABEL_MAX + 1];
	char *u = NULL;
	int rc = idn2_to_unicode_8z8z(label, &u, 0);

	if (rc == IDN2_MALLOC)
		return idn_error(rc, fault);
	if (rc != IDN2_OK)
		rc = -EINVAL;
	else
		rc = is_ascii(u) ? -EINVAL : to_alabel(u, STRICT, again, fault);
	idn2_free(u);
	if (rc == 0 && strcmp(again, label) != 0)
		rc = -EINVAL;
	if (rc == -EINVAL)
		*fault = "has a label with \"xn--\" that is not the normal form of any";
	return rc;
}

static int normal_label(const char *label, char *out, const char **fault)
{
	if (!is_ascii(label))
		return unicode_label(label, out, fault);
	*fault = ascii_fault(label);
	if (*fault)
		return -EINVAL;
	memcpy(out, label, strlen(label) + 1);
	return has_prefix(label, "xn--") ? check_alabel(label, fault) : 0;
}

/*
 * Whether a program could read it as an IPv4 address: those that do (inet_aton(), the URL standard)
 * all ask for a number at the end, decimal, octal or hexadecimal. No top-level domain is a number.
 */
static bool ends_in_number(const char *name)
{
	const char *dot = strrchr(name, '.');
	const char *p = dot ? dot + 1 : name;
	bool hex = p[0] == '0' && p[1] == 'x';

	if (hex)
		p += 2;
	else if (!*p)
		return false;
	for (; *p; p++) {
		if (hex ? !is_hex(*p) : !is_digit(*p))
			return false;
	}
	return true;
}

/* name is domain, or below it. */
static bool is_under(const char *name, const char *domain)
{
	size_t n = strlen(name), d = strlen(domain);

	if (n < d || strcmp(name + n - d, domain) != 0)
		return false;
	return n == d || name[n - d - 1] == '.';
}

/* What is wrong with the bytes, before they are cut into labels. */
static const char *bytes_fault(const char *name, size_t len)
{
	if (len == 0)
		return "is empty";
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)name[i];

		if (c == 0)
			return "has a NUL byte";
		if (c < 0x20 || c == 0x7f)
			return "has a control character";
	}
	if (len > WRITTEN_MAX)
		return "is longer than 253 bytes";
	if (memchr(name, ':', len) || memchr(name, '[', len) || memchr(name, ']', len))
		return "is an address or has a port, and only a name can be here";
	if (!utf8_valid((const uint8_t *)name, len))
		return "is not valid UTF-8";
	if (name[len - 1] == '.')
		return "ends in a dot";
	return NULL;
}

static const char *whole_fault(const char *name)
{
	if (ends_in_number(name))
		return "is an address, and only names can be allowed";
	if (is_under(name, "localhost"))
		return "is the machine itself";
	if (is_under(name, "egress"))
		return "is below \"egress\", which is the proxy's own";
	if (!strchr(name, '.'))
		return "is a single word; names have a dot";
	return NULL;
}

int egress_name_normal(const char *name, size_t len, char *out, const char **fault)
{
	char written[WRITTEN_MAX + 1], label[4 * LABEL_MAX + 1];
	size_t used = 0;
	char *next = written;

	*fault = bytes_fault(name, len);
	if (*fault)
		return -EINVAL;
	for (size_t i = 0; i < len; i++)
		written[i] = name[i] >= 'A' && name[i] <= 'Z' ? (char)(name[i] + 32) : name[i];
	written[len] = 0;
	do {
		char *this = strsep(&next, ".");
		int rc;

		*fault = !*this ? "has an empty label" : NULL;
		if (!*fault && strlen(this) >= sizeof(label))
			*fault = "has a label of more than 63 bytes";
		if (*fault)
			return -EINVAL;
		rc = normal_label(this, label, fault);
		if (rc < 0)
			return rc;
		if (used + strlen(label) + (used > 0) > EGRESS_HOST_MAX) {
			*fault = "is longer than 253 bytes";
			return -EINVAL;
		}
		used += (size_t)sprintf(out + used, "%s%s", used ? "." : "", label);
	} while (next);
	*fault = whole_fault(out);
	return *fault ? -EINVAL : 0;
}

int egress_host_normal(const char *name, size_t len, char out[EGRESS_HOST_MAX + 1], struct err *err)
{
	char quoted[EGRESS_QUOTE_MAX];
	const char *fault;
	int rc = egress_name_normal(name, len, out, &fault);

	if (rc == 0)
		return 0;
	out[0] = 0;
	egress_quote(quoted, name, len);
	return err_text(err, -rc, "%s %s", quoted, fault);
}

void egress_quote(char out[EGRESS_QUOTE_MAX], const char *s, size_t len)
{
	/* The longest piece, "...", the mark and the NUL. */
	const size_t room = EGRESS_QUOTE_MAX - sizeof("\\u{10ffff}...\"");
	size_t used = 0;

	out[used++] = '"';
	for (size_t i = 0; i < len;) {
		const char *p = s + i;
		int step = utf8_step((const uint8_t *)p, len - i);
		unsigned char c = (unsigned char)*p;

		if (used > room) {
			used += (size_t)sprintf(out + used, "...");
			break;
		}
		if (c >= 0x20 && c < 0x7f)
			used += (size_t)sprintf(out + used, c == '"' || c == '\\' ? "\\%c" : "%c",
						c);
		else if (step > 1)
			used += (size_t)sprintf(out + used, "\\u{%x}", next_char(&p));
		else
			used += (size_t)sprintf(out + used, "\\x{%02x}", c);
		i += step > 1 ? (size_t)step : 1;
	}
	sprintf(out + used, "\"");
}
