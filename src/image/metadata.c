/*
 * metadata.c - the words and the colour profile that travel with a poster.
 *
 * Owns three texts and their escapes; knows nothing of where in a file they go.
 *
 *     ImageDescription   {"software":"..","prompt":"..","settings":{..}}, ASCII only, as the tag
 *                        demands: everything else is a \u escape.  This is what we read back.
 *     XMP                dc:description            the prompt, for people and catalogues
 *                        xmp:CreatorTool           the software
 *                        Iptc4xmpExt:DigitalSourceType  trainedAlgorithmicMedia: made by a model
 *                        mural:settings            the settings JSON
 *     ICC profile        sRGB, version 2.1, which every printer's software understands
 *
 * XML cannot hold most control characters, not even escaped, so a prompt with one is exact in the
 * description only; in XMP U+FFFD stands there instead.
 *
 * Read next: picture_info.c, which reads it back.
 */
#include <stdio.h>
#include <string.h>

#include <lcms2.h>

#include "image/image_int.h"

/* No escape makes a byte longer than this: "\u001f", "&quot;". */
enum { GROWTH = 6 };

struct words {
    char  *text;
    size_t used, room;
};

static void put(struct words *out, const char *text, size_t count)
{
    must(count < out->room - out->used); /* the last byte of room stays 0 */
    memcpy(out->text + out->used, text, count);
    out->used += count;
}

static void put_text(struct words *out, const char *text)
{
    put(out, text, strlen(text));
}

/* The character at `text`, which is valid UTF-8 and not at its end. */
static uint32_t next_character(const char **text)
{
    const uint8_t *at = (const uint8_t *)*text;
    const int      extra = at[0] < 0x80 ? 0 : at[0] < 0xE0 ? 1 : at[0] < 0xF0 ? 2 : 3;
    uint32_t       code = extra == 0 ? at[0] : at[0] & (0x3Fu >> extra);

    for (int i = 1; i <= extra; i++)
        code = code << 6 | (at[i] & 0x3Fu);
    *text += extra + 1;
    return code;
}

static void put_unicode_escape(struct words *out, uint32_t code)
{
    char escape[16];

    if (code >= 0x10000) {
        code -= 0x10000;
        put_unicode_escape(out, 0xD800 + (code >> 10));
        code = 0xDC00 + (code & 0x3FF);
    }
    (void)snprintf(escape, sizeof escape, "\\u%04x", code);
    put_text(out, escape);
}

/* The inside of a JSON string, ASCII only. */
static void put_json_string(struct words *out, const char *text)
{
    while (*text != '\0') {
        const char    *start = text;
        const uint32_t code = next_character(&text);
        if (code == '"' || code == '\\') put(out, "\\", 1);
        if (code < 0x20 || code > 0x7E)
            put_unicode_escape(out, code);
        else
            put(out, start, 1);
    }
}

/* JSON that is already JSON: beyond ASCII it has strings only, where an escape means the same. */
static void put_json(struct words *out, const char *json)
{
    while (*json != '\0') {
        const char    *start = json;
        const uint32_t code = next_character(&json);
        if (code > 0x7E)
            put_unicode_escape(out, code);
        else
            put(out, start, 1);
    }
}

static bool is_xml_character(uint32_t code)
{
    return code == '\t' || code == '\n' || code == '\r' || (code >= 0x20 && code < 0xFFFE) ||
           code >= 0x10000;
}

static void put_xml(struct words *out, const char *text)
{
    while (*text != '\0') {
        const char    *start = text;
        const uint32_t code = next_character(&text);
        if (!is_xml_character(code))
            put_text(out, "\xEF\xBF\xBD");
        else if (code == '&')
            put_text(out, "&amp;");
        else if (code == '<')
            put_text(out, "&lt;");
        else if (code == '>')
            put_text(out, "&gt;");
        else if (code == '\r') /* a parser would make it a plain newline */
            put_text(out, "&#13;");
        else
            put(out, start, (size_t)(text - start));
    }
}

/* --------------------------------------------------------------------------------- texts */

static int check_utf8(const char *what, const char *text, struct err *err)
{
    int    rc = ERR_OK;
    size_t bytes, valid;

    if (text == NULL) return ERR_OK;
    bytes = strlen(text);
    valid = text_utf8_valid_prefix(text, bytes);
    if (valid != bytes)
        RAISE(err, ERR_USAGE, 0, "%s is not UTF-8: byte %zu is 0x%02X", what, valid,
              (unsigned)(uint8_t)text[valid]);
out:
    return rc;
}

/* Room for every text of the request at its longest, and for what stands around it. */
static int open_words(struct words *out, const struct bigtiff_request *request, struct err *err)
{
    int          rc = ERR_OK;
    const size_t around = 2048;
    size_t       bytes = strlen(request->settings_json);
    void        *memory = NULL;

    if (request->prompt != NULL) bytes += strlen(request->prompt);
    if (request->software != NULL) bytes += strlen(request->software);
    TRY(check_utf8("prompt", request->prompt, err));
    TRY(check_utf8("the settings JSON", request->settings_json, err));
    TRY(check_utf8("the software's name", request->software, err));
    TRY(os_alloc(&memory, bytes * GROWTH + around, 1, "metadata", err));
    *out = (struct words){.text = memory, .room = bytes * GROWTH + around};
out:
    return rc;
}

int metadata_description(char **text_out, const struct bigtiff_request *request, struct err *err)
{
    int          rc = ERR_OK;
    struct words words;

    must(request->settings_json != NULL);
    TRY(open_words(&words, request, err));
    put_text(&words, "{\"software\":\"");
    put_json_string(&words, request->software != NULL ? request->software : "mural");
    if (request->prompt != NULL) {
        put_text(&words, "\",\"prompt\":\"");
        put_json_string(&words, request->prompt);
    }
    put_text(&words, "\",\"settings\":");
    put_json(&words, request->settings_json);
    put_text(&words, "}");
    *text_out = words.text;
out:
    return rc;
}

int metadata_xmp(char **xmp_out, const struct bigtiff_request *request, struct err *err)
{
    int          rc = ERR_OK;
    struct words words, json = {0};

    must(request->settings_json != NULL);
    TRY(open_words(&json, request, err));
    put_json(&json, request->settings_json);
    TRY(open_words(&words, request, err));
    put_text(&words, "<?xpacket begin=\"\xEF\xBB\xBF\" id=\"W5M0MpCehiHzreSzNTczkc9d\"?>\n"
                     "<x:xmpmeta xmlns:x=\"adobe:ns:meta/\">\n"
                     "<rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\n"
                     "<rdf:Description rdf:about=\"\""
                     " xmlns:dc=\"http://purl.org/dc/elements/1.1/\""
                     " xmlns:xmp=\"http://ns.adobe.com/xap/1.0/\""
                     " xmlns:Iptc4xmpExt=\"http://iptc.org/std/Iptc4xmpExt/2008-02-29/\""
                     " xmlns:mural=\"urn:mural:poster:1.0/\">\n");
    if (request->prompt != NULL) {
        put_text(&words, "<dc:description><rdf:Alt><rdf:li xml:lang=\"x-default\">");
        put_xml(&words, request->prompt);
        put_text(&words, "</rdf:li></rdf:Alt></dc:description>\n");
    }
    put_text(&words, "<xmp:CreatorTool>");
    put_xml(&words, request->software != NULL ? request->software : "mural");
    put_text(&words, "</xmp:CreatorTool>\n"
                     "<Iptc4xmpExt:DigitalSourceType>http://cv.iptc.org/newscodes/"
                     "digitalsourcetype/trainedAlgorithmicMedia</Iptc4xmpExt:DigitalSourceType>\n"
                     "<mural:settings>");
    put_xml(&words, json.text);
    put_text(&words, "</mural:settings>\n</rdf:Description>\n</rdf:RDF>\n</x:xmpmeta>\n"
                     "<?xpacket end=\"r\"?>");
    *xmp_out = words.text;
out:
    os_free(json.text);
    return rc;
}

static int copy_text(char **out, const char *text, size_t bytes, struct err *err)
{
    int   rc = ERR_OK;
    void *memory = NULL;

    TRY(os_alloc(&memory, (uint64_t)bytes + 1, 1, "metadata", err));
    memcpy(memory, text, bytes);
    *out = memory;
out:
    return rc;
}

int metadata_parse(char **prompt_out, char **settings_out, const char *description, struct err *err)
{
    /* Inside a JSON string a quote is escaped, so no prompt can contain this. */
    static const char key[] = ",\"settings\":";
    int               rc = ERR_OK;
    const char       *settings = strstr(description, key), *last = strrchr(description, '}');
    json_t           *whole = json_loads(description, JSON_REJECT_DUPLICATES, NULL);
    const json_t     *prompt = json_object_get(whole, "prompt");
    char             *prompt_copy = NULL;

    *prompt_out = *settings_out = NULL;
    if (json_object_get(whole, "settings") == NULL || settings == NULL || last == NULL) goto out;
    if (json_is_string(prompt))
        TRY(copy_text(&prompt_copy, json_string_value(prompt), json_string_length(prompt), err));
    settings += sizeof key - 1;
    if (settings >= last) goto out;
    TRY(copy_text(settings_out, settings, (size_t)(last - settings), err));
    *prompt_out = prompt_copy;
    prompt_copy = NULL;
out:
    os_free(prompt_copy);
    json_decref(whole);
    return rc;
}

/* --------------------------------------------------------------------------------- profile */

int metadata_srgb_icc(void **icc_out, uint32_t *bytes_out, struct err *err)
{
    enum { DATE = 24, DATE_END = 36 };                                     /* in every ICC header */
    static const uint8_t date[DATE_END - DATE] = {0x07, 0xD0, 0, 1, 0, 1}; /* 2000-01-01 */
    int                  rc = ERR_OK;
    void                *icc = NULL;
    cmsUInt32Number      bytes = 0;
    cmsContext           context = cmsCreateContext(NULL, NULL);
    cmsHPROFILE          profile = context == NULL ? NULL : cmsCreate_sRGBProfileTHR(context);

    if (profile == NULL) RAISE(err, ERR_HOST_MEM, 0, "memory: none left for the sRGB profile");
    cmsSetProfileVersion(profile, 2.1);
    if (!cmsSaveProfileToMem(profile, NULL, &bytes) || bytes < DATE_END)
        RAISE(err, ERR_HOST_MEM, 0, "lcms2 cannot make the sRGB profile");
    TRY(os_alloc(&icc, bytes, 1, "the sRGB profile", err));
    if (!cmsSaveProfileToMem(profile, icc, &bytes))
        RAISE(err, ERR_HOST_MEM, 0, "lcms2 cannot make the sRGB profile");
    /* lcms2 dates a profile by the clock, but the same poster must be the same bytes tomorrow. */
    memcpy((uint8_t *)icc + DATE, date, sizeof date);
    *icc_out = icc;
    *bytes_out = bytes;
    icc = NULL;
out:
    os_free(icc);
    if (profile != NULL) (void)cmsCloseProfile(profile);
    if (context != NULL) cmsDeleteContext(context);
    return rc;
}
