/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Only OpenSSL's constructors, no configuration texts: a host's name goes in as
 * a value, never as syntax.
 * Thread: any, one at a time. fork: memory.
 */
#define _GNU_SOURCE
#include "egress/http/ca.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define HOUR_S     3600L
#define DAY_S      (24 * HOUR_S)
#define CA_DAYS    30
#define LEAF_DAYS  7
#define PEM_MAX    16384
#define SERIAL_LEN 16

struct ca {
	EVP_PKEY *key;
	X509 *cert;
};

void ca_free(struct ca *ca)
{
	if (!ca)
		return;
	EVP_PKEY_free(ca->key);
	X509_free(ca->cert);
	free(ca);
}

/* Version, a random serial, validity from an hour ago, and the key. */
static bool cert_begin(X509 *cert, EVP_PKEY *key, long days)
{
	unsigned char serial[SERIAL_LEN];
	BIGNUM *number;
	bool ok;

	if (RAND_bytes(serial, sizeof(serial)) != 1)
		return false;
	serial[0] = (serial[0] & 0x3f) | 0x40; /* positive, and always as long */
	number = BN_bin2bn(serial, sizeof(serial), NULL);
	ok = number && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert)) &&
	     X509_set_version(cert, X509_VERSION_3) &&
	     X509_gmtime_adj(X509_getm_notBefore(cert), -HOUR_S) &&
	     X509_gmtime_adj(X509_getm_notAfter(cert), days * DAY_S) && X509_set_pubkey(cert, key);
	BN_free(number);
	return ok;
}

static bool set_name(X509_NAME *name, const char *cn)
{
	return X509_NAME_add_entry_by_txt(name, "O", MBSTRING_ASC,
					  (const unsigned char *)"Podflare sandbox", -1, -1, 0) &&
	       X509_NAME_add_entry_by_txt(name, "CN", MBSTRING_ASC, (const unsigned char *)cn, -1,
					  -1, 0);
}

static bool add_basic(X509 *cert, bool is_ca)
{
	BASIC_CONSTRAINTS *basic = BASIC_CONSTRAINTS_new();
	bool ok = basic != NULL;

	if (ok && is_ca) {
		basic->ca = 0xff;
		basic->pathlen = ASN1_INTEGER_new();
		ok = basic->pathlen && ASN1_INTEGER_set(basic->pathlen, 0);
	}
	ok = ok && X509_add1_ext_i2d(cert, NID_basic_constraints, basic, 1, 0) == 1;
	BASIC_CONSTRAINTS_free(basic);
	return ok;
}

static bool add_usage(X509 *cert, bool is_ca)
{
	/* RFC 5280 section 4.2.1.3: digitalSignature 0, keyCertSign 5, cRLSign 6. */
	ASN1_BIT_STRING *usage = ASN1_BIT_STRING_new();
	bool ok = usage && ASN1_BIT_STRING_set_bit(usage, is_ca ? 5 : 0, 1) &&
		  (!is_ca || ASN1_BIT_STRING_set_bit(usage, 6, 1)) &&
		  X509_add1_ext_i2d(cert, NID_key_usage, usage, 1, 0) == 1;

	ASN1_BIT_STRING_free(usage);
	return ok;
}

/* Hash of the public key, as subject and as issuer. */
static ASN1_OCTET_STRING *key_id(const X509 *cert)
{
	unsigned char digest[EVP_MAX_MD_SIZE];
	ASN1_OCTET_STRING *id = ASN1_OCTET_STRING_new();
	unsigned int len = 0;

	if (id && X509_pubkey_digest(cert, EVP_sha256(), digest, &len) &&
	    ASN1_OCTET_STRING_set(id, digest, 20))
		return id;
	ASN1_OCTET_STRING_free(id);
	return NULL;
}

static bool add_key_ids(X509 *cert, const X509 *issuer)
{
	ASN1_OCTET_STRING *own = key_id(cert);
	AUTHORITY_KEYID *authority = AUTHORITY_KEYID_new();
	bool ok = own && authority && (authority->keyid = key_id(issuer)) &&
		  X509_add1_ext_i2d(cert, NID_subject_key_identifier, own, 0, 0) == 1 &&
		  X509_add1_ext_i2d(cert, NID_authority_key_identifier, authority, 0, 0) == 1;

	ASN1_OCTET_STRING_free(own);
	AUTHORITY_KEYID_free(authority);
	return ok;
}

static bool add_server(X509 *cert, const char *host)
{
	EXTENDED_KEY_USAGE *usage = sk_ASN1_OBJECT_new_null();
	GENERAL_NAMES *names = sk_GENERAL_NAME_new_null();
	GENERAL_NAME *name = GENERAL_NAME_new();
	ASN1_IA5STRING *text = ASN1_IA5STRING_new();
	bool ok = usage && names && name && text && ASN1_STRING_set(text, host, -1) &&
		  sk_ASN1_OBJECT_push(usage, OBJ_nid2obj(NID_server_auth));

	if (ok) {
		GENERAL_NAME_set0_value(name, GEN_DNS, text);
		text = NULL;
		ok = sk_GENERAL_NAME_push(names, name);
	}
	if (ok) {
		name = NULL;
		ok = X509_add1_ext_i2d(cert, NID_ext_key_usage, usage, 0, 0) == 1 &&
		     X509_add1_ext_i2d(cert, NID_subject_alt_name, names, 0, 0) == 1;
	}
	ASN1_IA5STRING_free(text);
	GENERAL_NAME_free(name);
	GENERAL_NAMES_free(names);
	EXTENDED_KEY_USAGE_free(usage);
	return ok;
}

struct ca *ca_new(struct err *err)
{
	struct ca *ca = calloc(1, sizeof(*ca));
	X509_NAME *name;

	if (ca) {
		ca->key = EVP_EC_gen("P-256");
		ca->cert = X509_new();
	}
	name = ca && ca->cert ? X509_get_subject_name(ca->cert) : NULL;
	if (name && ca->key && cert_begin(ca->cert, ca->key, CA_DAYS) &&
	    set_name(name, "Podflare egress CA of one sandbox") &&
	    X509_set_issuer_name(ca->cert, name) && add_basic(ca->cert, true) &&
	    add_usage(ca->cert, true) && add_key_ids(ca->cert, ca->cert) &&
	    X509_sign(ca->cert, ca->key, EVP_sha256()))
		return ca;
	ERR_clear_error();
	ca_free(ca);
	err_text(err, ENOMEM, "the CA of the sandbox cannot be made");
	return NULL;
}

X509 *ca_sign(const struct ca *ca, const char *host, EVP_PKEY *key)
{
	X509 *cert = X509_new();
	X509_NAME *name = cert ? X509_get_subject_name(cert) : NULL;
	const ASN1_TIME *end = X509_get0_notAfter(ca->cert);
	/* A common name has 64 characters at most; it is for people, the name that counts is in
	 * the extension. */
	const char *cn = strlen(host) <= 64 ? host : "host";

	if (name && cert_begin(cert, key, LEAF_DAYS) && set_name(name, cn) &&
	    X509_set_issuer_name(cert, X509_get_subject_name(ca->cert)) &&
	    (ASN1_TIME_compare(X509_get0_notAfter(cert), end) <= 0 ||
	     X509_set1_notAfter(cert, end)) &&
	    add_basic(cert, false) && add_usage(cert, false) && add_server(cert, host) &&
	    add_key_ids(cert, ca->cert) && X509_sign(cert, ca->key, EVP_sha256()))
		return cert;
	ERR_clear_error();
	X509_free(cert);
	return NULL;
}

static char *bio_text(BIO *bio)
{
	char *data;
	long len = BIO_get_mem_data(bio, &data);

	return len > 0 ? strndup(data, (size_t)len) : NULL;
}

json_t *ca_json(const struct ca *ca)
{
	BIO *cert = BIO_new(BIO_s_mem()), *key = BIO_new(BIO_s_secmem());
	char *cert_pem = NULL, *key_pem = NULL;
	json_t *out = NULL;

	if (cert && key && PEM_write_bio_X509(cert, ca->cert) == 1 &&
	    PEM_write_bio_PKCS8PrivateKey(key, ca->key, NULL, NULL, 0, NULL, NULL) == 1) {
		cert_pem = bio_text(cert);
		key_pem = bio_text(key);
		if (cert_pem && key_pem)
			out = json_pack("{s:s,s:s}", "cert_pem", cert_pem, "key_pem", key_pem);
	}
	ERR_clear_error();
	BIO_free(cert);
	BIO_free(key);
	free(cert_pem);
	if (key_pem)
		explicit_bzero(key_pem, strlen(key_pem));
	free(key_pem);
	return out;
}

/* Never asks anybody for a passphrase. */
static int no_password(char *buf, int size, int rwflag, void *arg)
{
	(void)buf;
	(void)size;
	(void)rwflag;
	(void)arg;
	return -1;
}

static BIO *pem_bio(const json_t *text)
{
	size_t len = json_string_length(text);

	return len && len <= PEM_MAX ? BIO_new_mem_buf(json_string_value(text), (int)len) : NULL;
}

static int ca_check(const struct ca *ca, struct err *err)
{
	time_t tomorrow = time(NULL) + DAY_S;

	if (!ca->cert || !ca->key || X509_check_private_key(ca->cert, ca->key) != 1)
		return err_text(err, EINVAL, "the CA is not a certificate and its key");
	if (EVP_PKEY_get_base_id(ca->key) != EVP_PKEY_EC || X509_check_ca(ca->cert) != 1)
		return err_text(err, EINVAL, "the CA is not one that was made here");
	if (X509_cmp_time(X509_get0_notAfter(ca->cert), &tomorrow) <= 0)
		return err_text(err, ESTALE, "the CA is about to expire");
	return 0;
}

int ca_parse(struct ca **out, const json_t *pems, struct err *err)
{
	BIO *cert = pem_bio(json_object_get(pems, "cert_pem"));
	BIO *key = pem_bio(json_object_get(pems, "key_pem"));
	struct ca *ca = calloc(1, sizeof(*ca));
	int rc;

	if (ca && cert && key) {
		ca->cert = PEM_read_bio_X509(cert, NULL, no_password, NULL);
		ca->key = PEM_read_bio_PrivateKey(key, NULL, no_password, NULL);
	}
	rc = ca ? ca_check(ca, err) : err_text(err, ENOMEM, "no memory for the CA");
	ERR_clear_error();
	BIO_free(cert);
	BIO_free(key);
	if (rc < 0) {
		ca_free(ca);
		return rc;
	}
	*out = ca;
	return 0;
}

bool ca_same(const struct ca *a, const struct ca *b)
{
	return X509_cmp(a->cert, b->cert) == 0;
}
