/** The page's files, which are imported as text. */
declare module "../playground/*" {
  const text: string;
  export default text;
}

/** Swagger UI's files, which are imported as paths. */
declare module "swagger-ui-dist/*" {
  const path: string;
  export default path;
}
